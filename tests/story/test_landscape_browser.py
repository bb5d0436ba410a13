"""The Landscape page in a real browser: two runs' surfaces have one scale and are turned together."""

import pytest

from modalscape.engine.store.writer import RunReader, RunWriter
from tests.fixture_run import STEPS, write_run
from tests.homes import wait_for
from tests.story.pages import new_page

pytestmark = [pytest.mark.browser, pytest.mark.timeout(200)]

SPACES = "[...document.querySelectorAll('.js-plotly-plot')].filter(p => p._fullLayout && p._fullLayout.scene)"
PLANES = "[...document.querySelectorAll('.js-plotly-plot')].filter(p => (p._fullData || [{}])[0].type === 'contour')"
EYES = f"() => {SPACES}.map(p => p._fullLayout.scene._scene.getCamera().eye.x)"


def turned(page, before):
    """Drag across the first surface, wherever it lies now; return whether the second has turned away from `before`."""
    box = page.locator(".js-plotly-plot").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 120, y + 10, steps=5)
    page.mouse.up()
    page.wait_for_timeout(1000)
    return abs(page.evaluate(EYES)[1] - before[1]) > 0.05


def test_two_runs_surfaces_have_one_scale_and_are_turned_together(browser, site):
    address, _, runs = site
    homes = [write_run(runs / name) for name in ("one-run", "another-run")]
    writer, low = RunWriter(homes[1]), RunReader(homes[1]).at("landscape/2d", STEPS)
    writer.record(STEPS, type(low)(low.name, low.x, low.y, 3 * low.z, display=low.display))
    writer.close()
    page = new_page(browser, address, "/landscape?run=one-run")
    page.get_by_role("tab", name="Beside another run").click()
    page.wait_for_function(f"() => {SPACES}.length === 2 && {PLANES}.length === 2")
    page.wait_for_function(f"() => new Set({SPACES}.map(p => p._fullData[0].cmax)).size === 1")
    page.wait_for_function(f"() => new Set({PLANES}.map(p => p._fullData[0].zmax)).size === 1")
    assert len(set(page.evaluate(f"() => {SPACES}.map(p => String(p._fullLayout.scene.zaxis.range))"))) == 1
    scales = page.evaluate(f"() => {PLANES}.map(p => [p._fullData[0].zmin, p._fullData[0].zmax])")
    assert scales[0] == scales[1] == pytest.approx([low.z.min(), 3 * low.z.max()], rel=1e-4)

    before = page.evaluate(EYES)
    wait_for(lambda: turned(page, before), 60, "the other surface to turn")
    page.wait_for_function(f"() => Math.abs(({EYES})()[0] - ({EYES})()[1]) < 1e-3")
    assert page.problems == []
