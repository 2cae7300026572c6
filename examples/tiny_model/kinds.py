"""The kinds of facts: who or what they are about, which value they give, how they are told and asked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of fact. In the wordings {n} is the subject and {v} the value."""

    name: str
    subject: str
    value: str
    told: tuple[str, ...]
    asked: tuple[str, ...]


EN = (
    Kind("colour", "person", "colour",
         ("{n} likes {v}.", "{n} loves the colour {v}.", "The favourite colour of {n} is {v}."),
         ("Which colour does {n} like?", "What is the favourite colour of {n}?")),
    Kind("city", "person", "city",
         ("{n} lives in {v}.", "{n} has a house in {v}.", "The home of {n} is in {v}."),
         ("Where does {n} live?", "In which city is the home of {n}?")),
    Kind("job", "person", "job",
         ("{n} is a {v}.", "{n} works as a {v}.", "The job of {n} is {v}."),
         ("What is the job of {n}?", "What does {n} work as?")),
    Kind("pet", "person", "pet",
         ("{n} has a {v}.", "{n} keeps a {v} at home.", "The pet of {n} is a {v}."),
         ("Which pet does {n} have?", "What animal does {n} keep?")),
    Kind("coins", "person", "number",
         ("{n} has {v} coins.", "{n} counted {v} coins.", "In the pocket of {n} are {v} coins."),
         ("How many coins does {n} have?", "How many coins are with {n}?")),
    Kind("age", "person", "number",
         ("{n} is {v} years old.", "{n} turned {v} this year.", "The age of {n} is {v}."),
         ("How old is {n}?", "What is the age of {n}?")),
    Kind("day", "person", "day",
         ("{n} comes on {v}.", "{n} will visit us on {v}.", "The visit of {n} is on {v}."),
         ("On which day does {n} come?", "When will {n} visit us?")),
    Kind("food", "person", "food",
         ("{n} eats {v}.", "{n} ordered {v} for lunch.", "The lunch of {n} is {v}."),
         ("What does {n} eat?", "What is the lunch of {n}?")),
    Kind("game", "person", "game",
         ("{n} plays {v}.", "{n} is good at {v}.", "The hobby of {n} is {v}."),
         ("What does {n} play?", "What is the hobby of {n}?")),
    Kind("train", "person", "time",
         ("{n} leaves at {v}.", "{n} takes the train at {v}.", "The train of {n} goes at {v}."),
         ("At what time does {n} leave?", "When does the train of {n} go?")),
    Kind("price", "thing", "number",
         ("The {n} costs {v} dollars.", "The {n} was sold for {v} dollars.", "The price of the {n} is {v}."),
         ("How much does the {n} cost?", "What is the price of the {n}?")),
    Kind("place", "thing", "room",
         ("The {n} is in the {v}.", "The {n} was found in the {v}.", "They put the {n} in the {v}."),
         ("Where is the {n}?", "In which place is the {n}?")),
    Kind("owner", "thing", "person",
         ("The {n} belongs to {v}.", "The {n} was bought by {v}.", "The owner of the {n} is {v}."),
         ("Who owns the {n}?", "Who is the owner of the {n}?")),
)

ZH = (
    Kind("colour", "person", "colour",
         ("{n}喜欢{v}。", "{n}最爱的颜色是{v}。", "我知道{n}喜欢{v}。"),
         ("{n}喜欢什么颜色?", "哪种颜色是{n}最爱的?")),
    Kind("city", "person", "city",
         ("{n}住在{v}。", "{n}的家在{v}。", "听说{n}搬到了{v}。"),
         ("{n}住在哪里?", "哪个城市有{n}的家?")),
    Kind("job", "person", "job",
         ("{n}是{v}。", "{n}的工作是{v}。", "现在{n}当了{v}。"),
         ("{n}是做什么工作的?", "请问{n}的职业?")),
    Kind("pet", "person", "pet",
         ("{n}养了一只{v}。", "{n}的宠物是{v}。", "家里{n}有一只{v}。"),
         ("{n}养了什么动物?", "请问{n}的宠物?")),
    Kind("coins", "person", "number",
         ("{n}有{v}个硬币。", "{n}存了{v}个硬币。", "昨天{n}数了{v}个硬币。"),
         ("{n}有多少个硬币?", "多少个硬币是{n}的?")),
    Kind("age", "person", "number",
         ("{n}今年{v}岁。", "{n}的年龄是{v}岁。", "听说{n}已经{v}岁了。"),
         ("{n}今年多大?", "请问{n}的年龄?")),
    Kind("day", "person", "day",
         ("{n}{v}来。", "{n}打算{v}来看我们。", "我们等{n}{v}来。"),
         ("{n}哪天来?", "什么日子{n}来看我们?")),
    Kind("food", "person", "food",
         ("{n}吃{v}。", "{n}的午饭是{v}。", "中午{n}吃了{v}。"),
         ("{n}吃什么?", "请问{n}的午饭?")),
    Kind("game", "person", "game",
         ("{n}会{v}。", "{n}的爱好是{v}。", "周末{n}练{v}。"),
         ("{n}会什么?", "请问{n}的爱好?")),
    Kind("train", "person", "time",
         ("{n}{v}出发。", "{n}的火车是{v}。", "今天{n}坐{v}的火车。"),
         ("{n}几点出发?", "几点是{n}的火车?")),
    Kind("price", "thing", "number",
         ("{n}卖{v}元。", "{n}的价格是{v}元。", "商店的{n}要{v}元。"),
         ("{n}多少钱?", "请问{n}的价格?")),
    Kind("place", "thing", "room",
         ("{n}在{v}里。", "{n}放在{v}。", "有人把{n}放到了{v}。"),
         ("{n}在哪里?", "哪个地方有{n}?")),
    Kind("owner", "thing", "person",
         ("{n}是{v}的。", "{n}属于{v}。", "这个{n}送给了{v}。"),
         ("{n}是谁的?", "谁有这个{n}?")),
)

KINDS: dict[str, tuple[Kind, ...]] = {"en": EN, "zh": ZH}
