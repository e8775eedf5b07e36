"""Names the benchmarks' marks."""


def pytest_configure(config):
    config.addinivalue_line("markers", "bar: float32 cases that bars.py has a bar for")
    config.addinivalue_line("markers", "quick: a few of them, for under three minutes")
