"""The words the stories are made of: people, things and the values a fact can have, in two languages."""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


NUMBERS = [str(number) for number in range(10, 100)]

EN: dict[str, list[str]] = {
    "person": _words(
        "Anna Ben Carl Dora Emma Finn Gina Hugo Iris Jack Kate Leo Mia Nina Omar Paul Rosa Sam Tina Vera "
        "Zoe Adam Beth Cora Dan Eva Fred Gus Hana Ivan Kim Lara Max Noah Olga Pete Ruth Sara Tom Yara "
        "Zack Alice Bella Clara David Ella Felix Henry Jane Lucy Mark Nora Oscar Peter Simon Julia"
    ),
    "thing": _words("lamp chair table clock box phone bike coat hat book bag ring cup key radio car"),
    "colour": _words("red blue green yellow purple orange black white brown pink grey gold"),
    "city": _words(
        "Paris London Rome Berlin Madrid Vienna Oslo Cairo Tokyo Lima Delhi Boston Prague Dublin Athens Lisbon"
    ),
    "job": _words(
        "baker doctor teacher farmer pilot nurse painter driver singer writer lawyer waiter sailor dancer cook clerk"
    ),
    "pet": _words("cat dog horse rabbit parrot turtle hamster goat duck pony snake sheep mouse fox"),
    "day": _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "food": _words("rice soup bread cheese pasta salad fish cake pizza noodles beans eggs honey apples pears grapes"),
    "game": _words("chess piano tennis golf hockey guitar drums cards football flute violin rugby"),
    "room": _words("kitchen garden attic garage office bedroom hall cellar library bathroom shop school"),
    "number": NUMBERS,
}

ZH: dict[str, list[str]] = {
    "person": _words(
        "小明 小红 小刚 小丽 小华 小芳 小强 小军 小燕 小玲 大伟 志强 美玲 秀英 丽娜 海燕 文杰 雅琴 "
        "子涵 浩然 雨桐 思远 佳怡 晓东 晓梅 春花 桂芳 玉兰 金凤 永强 立新 明辉 天宇 俊杰 诗涵 欣怡 "
        "嘉豪 安娜 家明 文静 国华 阿龙 阿珍 阿福 老王 老李 老张 老刘"
    ),
    "thing": _words("台灯 椅子 桌子 闹钟 箱子 手机 单车 外套 帽子 书包 戒指 杯子 钥匙 雨伞 相机 花瓶"),
    "colour": _words("红色 蓝色 绿色 黄色 紫色 橙色 黑色 白色 棕色 粉色 灰色 金色"),
    "city": _words("北京 上海 广州 深圳 成都 重庆 南京 武汉 西安 杭州 天津 苏州 大连 青岛 长沙 昆明"),
    "job": _words("医生 老师 农民 司机 护士 画家 歌手 作家 律师 厨师 警察 演员 记者 工人 会计 导游"),
    "pet": _words("猫 狗 兔子 鹦鹉 乌龟 仓鼠 山羊 鸭子 金鱼 白马 松鼠 刺猬 鸽子 青蛙"),
    "day": _words("星期一 星期二 星期三 星期四 星期五 星期六 星期日"),
    "food": _words("米饭 面条 饺子 包子 苹果 香蕉 西瓜 葡萄 豆腐 牛肉 鸡蛋 蛋糕 土豆 鱼汤 草莓 桃子"),
    "game": _words("足球 篮球 网球 排球 象棋 围棋 钢琴 吉他 书法 游泳 唱歌 跳舞 画画 跑步"),
    "room": _words("厨房 花园 阁楼 车库 书房 卧室 客厅 地窖 仓库 浴室 商店 学校"),
    "number": NUMBERS,
}

WORDS: dict[str, dict[str, list[str]]] = {"en": EN, "zh": ZH}
