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

    def close(self) -> None:
        self.driver.quit()
