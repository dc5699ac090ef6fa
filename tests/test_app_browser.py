"""Tests of the web app in a headless Chromium driven by Selenium.

Skipped if Gradio, Selenium or a browser is missing (on Debian: apt install chromium chromium-driver). Screenshots are
written to the folder DCTRANSFORMER_SCREENSHOTS, or to pytest's temporary folder.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app_server import running
from dctransformer.app.limits import Limits
from dctransformer.codec import read_jpeg_bytes
from dctransformer.sampling.pool import Pool
from pictures import photo, pillow_jpeg
from test_app import BAD_UPLOADS
from tiny_model import save_tiny_model

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
try:
    import gradio  # noqa: F401
    from selenium import webdriver
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.remote.webelement import WebElement
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError as missing:
    pytest.skip(f"{missing}: pip install 'dctransformer[app,dev]'", allow_module_level=True)
if not CHROMIUM or not DRIVER:
    pytest.skip("there is no chromium and chromedriver here", allow_module_level=True)

SECONDS = 60
"""How long anything may take on a busy machine."""

ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--window-size=1180,1000",
)  # fmt: skip


class Page:
    """A browser with the actions of a user."""

    def __init__(self, driver: webdriver.Chrome, url: str, shots: Path, pool: Pool):
        self.driver, self.url, self.shots, self.pool = driver, url, shots, pool

    def open(self, url: str | None = None) -> None:
        self.driver.get(url or self.url)
        self.until(lambda: self.shown("#generate-go"))

    def until(self, true: Callable[[], object]) -> None:
        WebDriverWait(self.driver, SECONDS, 0.1, [Exception]).until(lambda _: true())

    def shown(self, css: str) -> list[WebElement]:
        elements: list[WebElement] = []

        def look() -> bool:  # again, if the page has been redrawn in the meantime
            elements[:] = [e for e in self.driver.find_elements(By.CSS_SELECTOR, css) if e.is_displayed()]
            return True

        self.until(look)
        return elements

    def tab(self, name: str) -> None:
        task = name.lower()
        (button,) = [b for b in self.shown('button[role="tab"]') if b.text.strip() == name]
        button.click()
        self.until(lambda: self.shown(f"#{task}-out"))

    def click(self, css: str) -> None:
        def click() -> bool:
            element = self.shown(css)[0]
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
            element.click()
            return True

        self.until(click)

    def text(self, css: str) -> str:
        return self.driver.find_element(By.CSS_SELECTOR, css).get_property("innerText")

    def wait_for_text(self, css: str, text: str) -> None:
        self.until(lambda: text in self.text(css))

    def upload(self, task: str, path: Path) -> None:
        self.driver.find_element(By.CSS_SELECTOR, f"#{task}-file input[type=file]").send_keys(str(path))

    def held(self, task: str) -> str:
        """The server's id of the picture in a tab; empty without a picture."""
        return self.driver.find_element(By.CSS_SELECTOR, f"#{task}-held textarea").get_property("value")

    def links(self, task: str) -> list[str]:
        """The current download links (the files are in the links themselves)."""
        script = "return [...document.querySelectorAll(arguments[0])].map(a => a.href)"
        return self.driver.execute_script(script, f"#{task}-out a.dct-download")

    def results(self, task: str, other_than: list[str] | None = None) -> list[bytes]:
        """Wait for download links other than ``other_than``, and return the files."""
        links: list[str] = []

        def look() -> bool:  # links are read once, as a page that is being redrawn may briefly have none
            links[:] = self.links(task)
            return links not in ([], other_than)

        self.until(look)
        return [base64.b64decode(link.split(",", 1)[1]) for link in links]

    def wait_for_new(self, task: str, do: Callable[[], None]) -> list[bytes]:
        """Perform an action, and return the files once their links differ from before."""
        before = self.links(task)
        do()
        return self.results(task, before)

    def shoot(self, name: str) -> None:
        height = self.driver.execute_script("return document.documentElement.scrollHeight")
        self.driver.set_window_size(1180, min(max(height + 150, 700), 2400))
        self.driver.save_screenshot(str(self.shots / f"{name}.png"))
        self.driver.set_window_size(1180, 1000)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A server, and a browser with a fresh profile that has opened the page."""
    base = tmp_path_factory.mktemp("app")
    shots = Path(os.environ.get("DCTRANSFORMER_SCREENSHOTS") or base / "screenshots")
    shots.mkdir(parents=True, exist_ok=True)
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (*ARGUMENTS, f"--user-data-dir={base / 'profile'}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    limits = Limits(max_megabytes=1, max_side=64, queue=1, batch=1)
    with running(save_tiny_model(base / "model"), limits) as (url, studio):
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        try:
            opened = Page(driver, url, shots, studio.pool)
            opened.open()
            yield opened
        finally:
            driver.quit()


def test_generate(page: Page) -> None:
    """The same seed gives the same file, another seed another one, and the seed is shown."""
    page.shoot("start")
    page.click("#generate-go")
    (first,) = page.results("generate")
    seed = page.driver.find_element(By.CSS_SELECTOR, "#generate-seed input").get_property("value")
    assert f"seed {seed}" in page.text("#generate-out")
    assert len(page.shown("#generate-out figure")) == 2 + 4  # picture and heat-map; the four bands
    assert read_jpeg_bytes(first).height == 32
    page.shoot("generate")
    (other,) = page.wait_for_new("generate", lambda: page.click("#generate-go"))
    assert other != first
    page.click("#generate-fresh input")
    field = page.driver.find_element(By.CSS_SELECTOR, "#generate-seed input")
    field.clear()
    field.send_keys(seed)
    (repeated,) = page.wait_for_new("generate", lambda: page.click("#generate-go"))
    assert repeated == first


def test_one_click_examples(page: Page) -> None:
    """Examples work in every tab."""
    page.tab("Generate")
    shown = page.text("#generate-out")
    for number in range(len(page.shown("button[id^=generate-example-]"))):
        page.click(f"#generate-example-{number}")
        # The seed is another one, and so the text; pictures of two seeds may be the same.
        page.until(lambda shown=shown: page.links("generate") and page.text("#generate-out") != shown)
        shown = page.text("#generate-out")
    for name, size in (("Upscale", 64), ("Colorize", 64), ("Inpaint", 64), ("Continue", 64)):
        page.tab(name)
        page.click(f"#{name.lower()}-example-1")
        (data,) = page.results(name.lower())
        assert read_jpeg_bytes(data).height == size
        assert "seed 1" in page.text(f"#{name.lower()}-out")
        page.shoot(name.lower())


def test_brushing_a_mask(page: Page, tmp_path: Path) -> None:
    """An empty mask is refused; a stroke in a corner changes that square and no other.

    This also holds in browsers that randomise canvas reads to prevent fingerprinting.
    """
    page.driver.execute_script(
        "HTMLCanvasElement.prototype.toDataURL = () => 'data:,';"
        "CanvasRenderingContext2D.prototype.getImageData = () => { throw new Error(); };"
    )
    page.tab("Inpaint")
    file = tmp_path / "mine.jpg"
    file.write_bytes(pillow_jpeg(photo(48, 48), 90))
    before = page.held("inpaint")
    page.upload("inpaint", file)
    page.until(lambda: page.held("inpaint") not in ("", before))
    page.click("#inpaint-go")
    page.wait_for_text("#inpaint-out", "Brush over what is to be replaced first")
    canvas = page.shown("#inpaint-shown canvas")[0]
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    left, top = -canvas.size["width"] // 2, -canvas.size["height"] // 2
    brush = ActionChains(page.driver).move_to_element_with_offset(canvas, left + 30, top + 30).click_and_hold()
    brush.move_by_offset(20, 0).move_by_offset(0, 20).release().perform()
    page.shoot("brush")
    (data,) = page.wait_for_new("inpaint", lambda: page.click("#inpaint-go"))
    original, result = read_jpeg_bytes(file.read_bytes()), read_jpeg_bytes(data)
    changed = (original.luma != result.luma).any(-1)[0]
    assert bool(changed[:2, :2].any()) and not bool(changed[2:].any()) and not bool(changed[:, 2:].any())
    page.click("#inpaint-clear")
    page.click("#inpaint-go")
    page.wait_for_text("#inpaint-out", "nothing is painted yet")


def test_bands_and_uploads(page: Page, tmp_path: Path) -> None:
    """The slider shows how much is kept; the picture is a PNG file, shrunk to fit, and no copy of it remains."""
    page.tab("Continue")
    file = tmp_path / "mine.png"
    Image.fromarray(photo(100, 80)).save(file)
    page.upload("continue", file)
    page.wait_for_text("#continue-shown", "shrunk to 51 × 64")
    slider = page.driver.find_element(By.CSS_SELECTOR, "#continue-bands input[type=range]")
    slider.send_keys("\ue012")  # arrow left
    page.wait_for_new("continue", lambda: page.click("#continue-go"))
    assert "given: 1 of 4 bands" in page.text("#continue-out")


def test_inspect(page: Page, tmp_path: Path) -> None:
    """Inspecting a user's file shows its triples, the heat map of bits and the surprises."""
    page.tab("Inspect")
    file = tmp_path / "mine.jpg"
    file.write_bytes(pillow_jpeg(photo(64, 96), 75))
    page.upload("inspect", file)
    page.until(lambda: page.held("inspect"))
    page.click("#inspect-go")
    page.wait_for_text("#inspect-out", "What surprised it most")
    count = len(read_jpeg_bytes(file.read_bytes()).to_triples()[0])
    assert f"{count:,} coefficients" in page.text("#inspect-out")
    assert len(page.shown("#inspect-out table")) == 3
    page.shoot("inspect")


@pytest.mark.parametrize("name", ["text", "truncated", "bomb", "heavy", "animated"])
def test_invalid_uploads_are_reported_and_the_server_keeps_running(page: Page, tmp_path: Path, name: str) -> None:
    """Invalid files are reported, and the server keeps running."""
    page.open()  # without the results of the previous test
    page.tab("Colorize")
    if name == "animated":
        frames = [Image.fromarray(photo(20, 30, i)) for i in range(3)]
        file = tmp_path / "moving.gif"
        frames[0].save(file, save_all=True, append_images=frames[1:])
        message = "its first frame is used"
    else:
        data, message = BAD_UPLOADS[name]
        file = tmp_path / f"{name}.jpg"
        file.write_bytes(data)
    page.upload("colorize", file)
    page.wait_for_text("#colorize-shown", message)
    page.shoot(f"upload-{name}")
    page.click("#colorize-example-0")
    assert len(page.results("colorize")) == 1


def test_two_tabs_at_once_and_a_full_queue(page: Page) -> None:
    """One job runs, one waits, one too many is refused; every result reaches its own user."""
    driver = page.driver
    first = driver.current_window_handle
    page.open()
    handles = [first]
    # The third tab uses another host name, because a browser opens at most six connections per host.
    for url in (page.url, page.url.replace("127.0.0.1", "localhost")):
        driver.switch_to.new_window("window")
        handles.append(driver.current_window_handle)
        page.open(url)
    with page.pool.paused():  # another user's long job, so that the next click has to wait
        for handle in handles:
            driver.switch_to.window(handle)
            page.click("#generate-go")
            # The first job shows its progress, the second its place in the queue, and the third is refused.
            page.until(lambda: re.search("starting|queue: |busy", page.text("body")))
        assert "application is currently busy" in page.text("body")  # Gradio's message for a full queue
        page.shoot("queue-full")
    shown = []
    for handle in handles[:2]:
        driver.switch_to.window(handle)
        page.results("generate")
        seed = driver.find_element(By.CSS_SELECTOR, "#generate-seed input").get_property("value")
        assert f"seed {seed}" in page.text("#generate-out")
        shown.append(seed)
    assert shown[0] != shown[1]
    for handle in handles[1:]:
        driver.switch_to.window(handle)
        driver.close()
    driver.switch_to.window(first)


def test_the_page_sends_no_requests_to_other_hosts(page: Page) -> None:
    """The browser has sent requests to this server only, and none was blocked."""
    page.open()
    asked = [
        json.loads(entry["message"])["message"]["params"]["request"]["url"]
        for entry in page.driver.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"]
    ]
    web = [url for url in asked if re.match("(http|ws)s?:", url)]
    own_urls = (page.url, page.url.replace("127.0.0.1", "localhost"))
    assert web and all(url.startswith(own_urls) for url in web)
    refused = [entry["message"] for entry in page.driver.get_log("browser") if "Content Security" in entry["message"]]
    assert not refused


def test_a_model_that_lacks_tasks(page: Page, tmp_path: Path) -> None:
    """Buttons of unsupported tasks are disabled, and the page explains why."""
    folder = save_tiny_model(tmp_path / "plain", conditions=("none",), num_labels=0, label_names=())
    with running(folder, Limits()) as (url, _):
        page.open(url)
        for name in ("Upscale", "Colorize", "Inpaint"):
            page.tab(name)
            task = name.lower()
            page.wait_for_text(f"#{task}-why-not", f"was not trained to {task}")
            assert not page.shown(f"#{task}-go")[0].is_enabled()
        page.shoot("lacking")
        page.tab("Generate")
        page.click("#generate-go")
        assert len(page.results("generate")) == 1
        page.driver.get("about:blank")


def test_screenshots_were_taken(page: Page) -> None:
    """All screenshots exist and are not blank."""
    shots = sorted(page.shots.glob("*.png"))
    assert len(shots) >= 10
    for shot in shots:
        assert float(np.asarray(Image.open(shot).convert("L")).std()) > 5
