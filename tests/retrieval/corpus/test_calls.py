"""Functions that do nothing but call another one."""

from __future__ import annotations

import pytest

from parallelmind.retrieval.corpus.calls import only_call
from parallelmind.retrieval.corpus.objects import PackageObject


@pytest.mark.parametrize(
    ("code", "called"),
    [
        ("def alltrue(*args, **kwargs):\n    return all(*args, **kwargs)", "all"),
        (
            "    def by_xpath(self, xpath):\n        '''Doc.'''\n        return self.find(by=By.X, value=xpath)",
            "self.find",
        ),
        ("def old(a):\n    warnings.warn('gone', stacklevel=2)\n    box.new(a)", "box.new"),
        ("async def old(a):\n    return await new(a)", "new"),
        ("def old(a, b):\n    return new(a)", ""),  # it leaves something out
        ("def old(a):\n    return new(a + 1)", ""),
        ("def old(a):\n    b = a\n    return new(b)", ""),
        ("def save(self, a):\n    return super().save(a)", ""),
        ("def save(self, a):\n    return self.inner.save(a)", ""),
        ("def old(a):\n    return new(a).more", ""),
        ("def old(a:", ""),
        ("", ""),
    ],
)
def test_only_call(code: str, called: str) -> None:
    assert only_call(PackageObject(path="box.old", type="function", code=code)) == called


def test_classes_have_none() -> None:
    assert only_call(PackageObject(path="box.Old", type="class", code="def old(a):\n    return new(a)")) == ""
