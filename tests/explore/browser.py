"""Debian's Chromium on pages from disk, driven through its WebDriver."""

import sys
import time
from pathlib import Path

# Debian's packages, whichever Python runs the tests.
if "/usr/lib/python3/dist-packages" not in sys.path:
    sys.path.append("/usr/lib/python3/dist-packages")

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"


def missing() -> str:
    """What keeps the browser from starting; empty: nothing."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "python3-selenium is not installed: scripts/setup.sh"
    return "" if Path(CHROMIUM).exists() and Path(DRIVER).exists() else "chromium-driver is not installed: scripts/setup.sh"


class Browser:
    def __init__(self, width: int = 1280, height: int = 800):
        from selenium import webdriver
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service

        options = Options()
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                         "--force-device-scale-factor=1", "--disable-background-networking", f"--window-size={width},{height}"):
            options.add_argument(argument)
        options.binary_location = CHROMIUM
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(service=Service(DRIVER), options=options)
        self.driver.set_script_timeout(300)
        self.size(width, height)

    def size(self, width: int, height: int) -> None:
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                    {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})

    def open(self, page: Path, link: str = "") -> None:
        """Returns when the page has drawn itself, or has said that it cannot."""
        self.driver.get("about:blank")  # another link into the same page would not load it again
        self.driver.get(f"file://{page}{link}")
        end = time.monotonic() + 120
        while not self.js("return document.body.classList.contains('ready') || !document.getElementById('problem').hidden"):
            if time.monotonic() > end:
                raise TimeoutError(f"{page}: the page does not get ready")
            time.sleep(0.02)

    def js(self, script: str, *arguments):
        return self.driver.execute_script(script, *arguments)

    def state(self) -> dict:
        return self.js("return explorer.state")

    def click(self, selector: str) -> None:
        from selenium.webdriver.common.by import By
        self.driver.find_element(By.CSS_SELECTOR, selector).click()

    def keys(self, *keys: str) -> None:
        """To whatever has the focus; names are those of selenium's Keys: "ARROW_RIGHT"."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.keys import Keys
        chain = ActionChains(self.driver)
        for key in keys:
            if key.startswith("SHIFT+"):
                chain.key_down(Keys.SHIFT).send_keys(getattr(Keys, key[6:], key[6:])).key_up(Keys.SHIFT)
            else:
                chain.send_keys(getattr(Keys, key, key))
        chain.perform()

    def errors(self) -> list[str]:
        """What the console has said since the last call, warnings included."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def picture(self, path: Path) -> None:
        self.driver.save_screenshot(str(path))

    def promise(self, expression: str):
        """What the promise comes to."""
        return self.driver.execute_async_script(f"const done = arguments[arguments.length - 1]; ({expression}).then(done)")

    def differing(self, *pictures: Path) -> float:
        """The share of pixels that differ between two pictures by more than the smoothing of a letter's edge. 1: another size."""
        import base64
        self.driver.get("about:blank")
        urls = ["data:image/png;base64," + base64.b64encode(path.read_bytes()).decode() for path in pictures]
        return self.driver.execute_async_script("""
            const [urls, done] = arguments;
            Promise.all(urls.map(async (url) => createImageBitmap(await (await fetch(url)).blob()))).then(([a, b]) => {
              if (a.width !== b.width || a.height !== b.height) return done(1);
              const [x, y] = [a, b].map((image) => {
                const c = new OffscreenCanvas(image.width, image.height).getContext("2d");
                c.drawImage(image, 0, 0);
                return c.getImageData(0, 0, image.width, image.height).data;
              });
              let different = 0;
              for (let i = 0; i < x.length; i += 4)
                if (Math.max(Math.abs(x[i] - y[i]), Math.abs(x[i + 1] - y[i + 1]), Math.abs(x[i + 2] - y[i + 2])) > 64) different += 1;
              done(different / (a.width * a.height));
            });""", urls)

    def close(self) -> None:
        self.driver.quit()
