"""Records that the training demo makes up: stories to recall from, and private facts to share.

The words are a part of those that the bundled model knows; the same seed gives the same records.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from parallelmind.io.atomic import replacing

Record = dict[str, Any]


def _words(text: str) -> list[str]:
    return text.split()


HEADINGS = {"en": "Notes:", "zh": "笔记:"}
PEOPLE = {
    "en": _words(
        "Anna Ben Carl Dora Emma Finn Gina Hugo Iris Jack Kate Leo Mia Nina Omar Paul Rosa Sam Tina Vera Zoe Adam "
        "Beth Cora Dan Eva Fred Gus Hana Ivan"
    ),
    "zh": _words(
        "小明 小红 小刚 小丽 小华 小芳 小强 小军 小燕 小玲 大伟 志强 美玲 秀英 丽娜 海燕 文杰 雅琴 子涵 浩然 "
        "思远 佳怡 晓东 晓梅 春花"
    ),
}
VALUES = {
    "en": {
        "colour": _words("red blue green yellow purple orange black white brown pink grey gold"),
        "city": _words("Paris London Rome Berlin Madrid Vienna Oslo Cairo Tokyo Lima Delhi Boston"),
        "job": _words("baker doctor teacher farmer pilot nurse painter driver singer writer lawyer waiter"),
        "pet": _words("cat dog horse rabbit parrot turtle hamster goat duck pony snake sheep"),
    },
    "zh": {
        "colour": _words("红色 蓝色 绿色 黄色 紫色 橙色 黑色 白色 棕色 粉色 灰色 金色"),
        "city": _words("北京 上海 广州 深圳 成都 重庆 南京 武汉 西安 杭州 天津 苏州"),
        "job": _words("医生 老师 农民 司机 护士 画家 歌手 作家 律师 厨师 警察 演员"),
        "pet": _words("猫 狗 兔子 鹦鹉 乌龟 仓鼠 山羊 鸭子 金鱼 白马 松鼠 刺猬"),
    },
}
KINDS = {
    "en": {
        "colour": (
            ("{n} likes {v}.", "The favourite colour of {n} is {v}.", "The colour {v} is loved by {n}."),
            ("Which colour does {n} like?", "What is the favourite colour of {n}?"),
        ),
        "city": (
            ("{n} lives in {v}.", "The home of {n} is in {v}.", "In {v} lives {n}."),
            ("Where does {n} live?", "In which city is the home of {n}?"),
        ),
        "job": (
            ("{n} is a {v}.", "The job of {n} is {v}.", "The {v} in town is {n}."),
            ("What is the job of {n}?", "What does {n} work as?"),
        ),
        "pet": (
            ("{n} has a {v}.", "The pet of {n} is a {v}.", "The {v} over there belongs to {n}."),
            ("Which pet does {n} have?", "What animal does {n} keep?"),
        ),
    },
    "zh": {
        "colour": (
            ("{n}喜欢{v}。", "{n}最爱的颜色是{v}。", "{v}是{n}最爱的颜色。"),
            ("{n}喜欢什么颜色?", "哪种颜色是{n}最爱的?"),
        ),
        "city": (
            ("{n}住在{v}。", "{n}的家在{v}。", "在{v}住着{n}。"),
            ("{n}住在哪里?", "哪个城市有{n}的家?"),
        ),
        "job": (
            ("{n}是{v}。", "{n}的工作是{v}。", "那位{v}是{n}。"),
            ("{n}是做什么工作的?", "请问{n}的职业?"),
        ),
        "pet": (
            ("{n}养了一只{v}。", "{n}的宠物是{v}。", "那只{v}是{n}养的。"),
            ("{n}养了什么动物?", "请问{n}的宠物?"),
        ),
    },
}
"""How a fact of each kind is told and asked."""
_RECALLED = 8
_PRIVATE = 4


def recall(rng: Random) -> Record:
    """A story of eight facts in main; every branch asks for one of them."""
    language, facts = _facts(rng, _RECALLED)
    space = _space(language)
    told = "".join(space + fact for fact, _, _ in facts)
    rng.shuffle(facts)
    branches = [{"prompt": question, "completion": space + value} for _, question, value in facts]
    return {"main": f"{HEADINGS[language]}{told}\n", "branches": branches}


def private_facts(rng: Random) -> Record:
    """Every branch states a fact of its own and asks for one that only another branch states."""
    language, facts = _facts(rng, _PRIVATE)
    space = _space(language)
    ahead = rng.randint(1, _PRIVATE - 1)
    branches = []
    for place, (fact, _, _) in enumerate(facts):
        _, question, value = facts[(place + ahead) % _PRIVATE]
        branches.append({"prompt": f"{space}{fact}{space}{question}", "completion": space + value})
    return {"main": f"{HEADINGS[language]}\n", "branches": branches}


def write_records(path: Path, make: Callable[[Random], Record], count: int, seed: int) -> None:
    """Write a JSONL file of records. Raises SettingsError if it cannot be written."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for record in _records(make, count, seed):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _records(make: Callable[[Random], Record], count: int, seed: int) -> Iterator[Record]:
    rng = Random(f"{make.__name__} {seed}")
    return (make(rng) for _ in range(count))


def _facts(rng: Random, count: int) -> tuple[str, list[tuple[str, str, str]]]:
    """A language, and (told, asked, value) of facts about as many people, of one kind or (many facts) two.

    With one kind the name alone tells which value is asked for.
    """
    language = rng.choice(list(KINDS))
    kinds = rng.sample(list(KINDS[language]), 2 if count > 4 else 1)
    people = rng.sample(PEOPLE[language], count)
    values = {kind: rng.sample(VALUES[language][kind], count) for kind in kinds}
    facts = []
    for place, name in enumerate(people):
        kind = kinds[place % len(kinds)]
        value = values[kind][place]
        told, asked = KINDS[language][kind]
        facts.append((rng.choice(told).format(n=name, v=value), rng.choice(asked).format(n=name), value))
    rng.shuffle(facts)
    return language, facts


def _space(language: str) -> str:
    return " " if language == "en" else ""
