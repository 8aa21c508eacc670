"""What all tests need."""

import signal

import pytest


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_works():
    """Started in the background, the tests and their children would be deaf to SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
