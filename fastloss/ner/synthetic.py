"""Writes a corpus in CLUENER's format from templates: ten types, CLUENER's imbalance, surfaces only context decides.

Templates and word parts were written for this project. Surfaces are composed (surname + given name, place + brand +
trade, ...), so that dev holds many that train never shows. Three things keep it from being trivial:
the same 《title》 may be a book, a movie or a game, the same place an address, a team or a scene, the same brand a
company, a game or a team; the words of a mention also occur where they name nothing; and some contexts fit
several types, with CLUENER's frequencies deciding, so no model can be right every time.
"""

import random
import re
from collections.abc import Callable
from typing import Any

from fastloss.ner.data import Corpus, Sentence, Span

# How often CLUENER's training sentences mention each type, in hundreds (its published counts).
TYPES = (
    "address",
    "book",
    "company",
    "game",
    "government",
    "movie",
    "name",
    "organization",
    "position",
    "scene",
)
FREQUENCY = dict(zip(TYPES, (29, 11, 30, 24, 18, 11, 38, 32, 31, 15), strict=True))
# The types that `thin` makes rarer: the three that are rarest.
RARE = ("book", "movie", "scene")
# How often a clause is about each type. Clauses mention other types too; so weighted, mentions come out like above.
CLAUSE_WEIGHTS = (21, 10, 16, 17, 15, 10, 13, 21, 17, 12)
SLOT = re.compile(r"([^{]*)(?:\{(~?\w+)\})?")


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SURNAMES = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭宋郑谢韩"
GIVEN = "伟芳敏静丽强磊军勇艳杰娟涛超秀刚文辉建国鹏飞雪梅志浩然宇"
FOREIGN = "卡罗马特尔斯丁维德里奥森克莱安格巴迪"
PLACES = words(
    "北京 上海 广州 深圳 杭州 南京 成都 重庆 武汉 西安 天津 苏州 青岛 大连 厦门 长沙 济南 郑州 沈阳 昆明 "
    "东湖 南山 江宁 海淀 朝阳 浦东 西湖 龙泉 云阳 白河 金沙 临江 安平 和县 永宁 清远 明水 武夷 长安 太和"
)
FOREIGN_PLACES = words("巴黎 伦敦 米兰 东京 柏林 马德里 里昂 都灵 曼城 慕尼黑 里斯本 莫斯科 首尔 纽约 悉尼 多哈")
BRANDS_A = "华金宏远盛鼎天恒瑞信联泰新东海佳众嘉中百"
BRANDS_B = "达通源泽科诺邦利创丰隆方润昌迅图美雅易凯"
TRADES = words("科技 银行 证券 地产 传媒 电器 汽车 能源 食品 航空 保险 软件 物流 制药")
FORMS = ("公司", "集团", "有限公司", "股份", "")
NATURE = words("山 湖 岛 寺 古镇 公园 峡谷 瀑布 森林公园 塔 长城 海滩 温泉 故居 博物馆 广场")
SCENIC = words("玉龙 白云 天池 青岩 翠屏 落霞 千佛 双桥 望江 石林 月牙 凤凰 九曲 云台 仙女 灵泉 金顶 碧水")
STREETS = words("人民 解放 中山 建设 长江 和平 新华 文化 学院 滨河 光明 胜利 花园 青年")
AGENCIES = words(
    "公安局 教育局 卫生局 法院 检察院 市政府 财政局 环保局 气象局 海关 国土局 派出所 税务局 交通局 人民政府"
)
MINISTRIES = words("教育部 财政部 外交部 国防部 商务部 卫生部 央行 证监会 国务院 发改委 海军 空军 最高法院 公安部")
BODIES = words("大学 足球队 研究院 协会 俱乐部 基金会 乐团 联盟 中学 医院 工会 学会 篮球队 艺术团")
LEVELS = ("", "副", "总", "首席", "高级", "前", "代理")
RANKS = words(
    "经理 教授 主任 局长 总裁 教练 记者 分析师 工程师 主席 部长 校长 导演 设计师 董事长 队长 研究员 秘书 院长 顾问"
)
TITLE_A = words(
    "红色 最后的 沉默的 消失的 永远的 黑夜 星辰 风中 长安 江湖 时间 幻想 龙之 天空 失落的 少年 机械 月光 无尽 雪国"
)
TITLE_B = words("城堡 传说 列车 花园 河流 帝国 战争 之歌 往事 旅人 王座 猎人 海岸 密码 岁月 边境 骑士 迷城 剑客 人生")

# {type} is a mention, {~type} the same words where they name nothing of that type and carry no label.
TEMPLATES = {
    "address": (
        "他从小住在{address}，今年才搬到{address}。",
        "这家店位于{address}，交通很方便。",
        "昨晚{address}发生了一起车祸，没有人受伤。",
        "{address}的房价上个月又涨了一成。",
        "列车从{address}开往{address}，全程三个小时。",
        "记者在{address}见到了{name}。",
        "{address}今天多云，最高气温二十度。",
        "{company}在{address}新开了一家分店。",
    ),
    "book": (
        "她花了三年写成{book}，由出版社印了一万册。",
        "{name}在{book}一书中写道，人总要学会等待。",
        "我最近在读{book}，已经翻到最后一章。",
        "{book}的作者{name}来到书店签售。",
        "这本{book}的译文很流畅，值得收藏。",
    ),
    "company": (
        "{company}昨天发布了第三季度财报，净利润下滑。",
        "{company}股价收盘上涨了百分之二。",
        "{name}宣布辞去{company}{position}一职。",
        "{company}与{company}签署了合作协议。",
        "很多用户投诉{company}的售后服务。",
        "{company}计划明年裁员五百人。",
        "分析认为，{company}将收购{company}的部分资产。",
    ),
    "game": (
        "{game}今天开放新的服务器，玩家可以领取道具。",
        "我玩{game}已经升到六十级了。",
        "{company}代理的网络游戏{game}即将公测。",
        "{game}的副本难度太高，组队才能通关。",
        "在{game}和{game}之间，玩家更喜欢前者的画面。",
        "下载{game}客户端需要十分钟。",
    ),
    "government": (
        "{government}今天公布了新的管理办法。",
        "{government}{position}{name}出席了发布会。",
        "此案已经由{government}立案调查。",
        "{government}发言人表示，将加强监管。",
        "市民可以向{government}举报违法行为。",
    ),
    "movie": (
        "{movie}上映三天，票房突破一亿元。",
        "{name}凭借{movie}获得最佳男主角。",
        "由{name}导演的{movie}将在暑期公映。",
        "影院里正在放映{movie}，观众笑个不停。",
        "{movie}的预告片里，{name}的表演很精彩。",
    ),
    "name": (
        "{name}说，这件事要从头讲起。",
        "{name}和{name}是多年的朋友。",
        "{position}{name}昨天接受了采访。",
        "在比赛最后一分钟，{name}打入一球。",
        "记者{name}报道，当地已经恢复供电。",
        "大家都喜欢听{name}唱歌。",
        "{organization}的{name}因伤缺阵。",
    ),
    "organization": (
        "{organization}昨晚以二比一战胜{organization}。",
        "{organization}主场迎战{organization}，双方势均力敌。",
        "他毕业于{organization}，后来留校任教。",
        "{organization}招收了三百名新成员。",
        "{organization}{position}{name}介绍了研究的进展。",
        "{organization}本赛季客场还没有赢过球。",
    ),
    "position": (
        "{position}{name}介绍，工程已经完工。",
        "她今年升任{company}{position}。",
        "{position}认为，市场还会继续下跌。",
        "会议由{position}主持，{position}作了总结。",
        "{government}{position}昨天到场慰问。",
    ),
    "scene": (
        "国庆期间，{scene}接待游客三万人次。",
        "我们一早爬上{scene}看日出。",
        "{scene}的门票从五十元涨到八十元。",
        "从{address}坐车一小时就到{scene}，风景很美。",
        "导游带着我们游览了{scene}和{scene}。",
    ),
}
# Contexts that say little: the type is drawn by frequency among those that could stand there.
VAGUE = (
    (("book", "movie", "game"), "很多人问我怎么看{?}，我说还可以。"),
    (("book", "movie", "game"), "网上关于{?}的讨论一直没有停过。"),
    (("address", "scene", "organization"), "说起{?}，他总是很兴奋。"),
    (("company", "organization", "government"), "{?}的一位负责人拒绝对此发表评论。"),
    (("company", "game", "organization"), "最近关于{?}的消息很多。"),
    (("address", "organization"), "今年的{?}让人失望。"),
)
PLAIN = (
    "《{~title}》这类书名号里的话，其实只是一句口号。",
    "按照{~place}时间，比赛将在凌晨开始。",
    "他的理想是当一名{~rank}，可是一直没有机会。",
    "天气预报说明天有雨，出门记得带伞。",
    "这道{~place}烤鸭做法简单，味道不错。",
    "新手应该先学会防守，再考虑进攻。",
    "大学、医院、公园和银行都在步行范围之内。",
    "周末我想去爬山，或者去湖边走走。",
)
OPENINGS = ("", "", "", "", "据了解，", "另外，", "不过，", "当时，", "去年，", "报道称，", "有人说，", "在我看来，")


def generate(train: int = 5000, dev: int = 800, seed: int = 0, label_noise: float = 0.0) -> Corpus:
    """A corpus of so many sentences, the same for the same arguments.

    `label_noise` is the share of train's mentions whose label is wrong: dropped, or given another type. Dev is clean.
    """
    rng = random.Random(seed)
    corpus = Corpus([write_sentence(rng) for _ in range(train)], [write_sentence(rng) for _ in range(dev)])
    return corpus._replace(train=[spoil(sentence, rng, label_noise) for sentence in corpus.train])


def write_sentence(rng: random.Random) -> Sentence:
    """An opening and one or two clauses, filled from left to right."""
    text, spans = rng.choice(OPENINGS), []
    for _ in range(rng.choice((1, 1, 2))):
        for literal, slot in SLOT.findall(write_clause(rng)):
            text += literal
            if slot:
                surface = MAKERS[slot.removeprefix("~")](rng)
                if not slot.startswith("~"):
                    spans.append(Span(slot, len(text), len(text) + len(surface) - 1))
                text += surface
    return Sentence(text, tuple(spans))


def write_clause(rng: random.Random) -> str:
    """A template whose slots are all named."""
    draw = rng.random()
    if draw < 0.06:
        types, template = rng.choice(VAGUE)
        return template.replace("?", rng.choices(types, [FREQUENCY[type_] for type_ in types])[0])
    if draw < 0.14:
        return rng.choice(PLAIN)
    return rng.choice(TEMPLATES[rng.choices(TYPES, CLAUSE_WEIGHTS)[0]])


def spoil(sentence: Sentence, rng: random.Random, share: float) -> Sentence:
    """Drops or retypes each span with probability `share`, half and half."""
    spans = []
    for span in sentence.spans:
        if rng.random() < share:
            if rng.random() < 0.5:
                continue
            span = span._replace(type=rng.choice([type_ for type_ in TYPES if type_ != span.type]))
        spans.append(span)
    return Sentence(sentence.text, tuple(spans))


def thin(corpus: Corpus, share: float) -> Corpus:
    """Keeps this share of the training sentences that mention one of the RARE types; dev stays as it is."""
    rng = random.Random(0)
    kept = [s for s in corpus.train if rng.random() < share or not any(span.type in RARE for span in s.spans)]
    return corpus._replace(train=kept)


def pick(rng: random.Random, *weighted: Any) -> Any:
    """One of (weight, value) pairs."""
    return rng.choices([value for _, value in weighted], [weight for weight, _ in weighted])[0]


def foreign(rng: random.Random) -> str:
    return "".join(rng.choices(FOREIGN, k=rng.choice((2, 3, 3, 4))))


def brand(rng: random.Random) -> str:
    return rng.choice(BRANDS_A) + rng.choice(BRANDS_B)


def title(rng: random.Random) -> str:
    first = pick(rng, (6, rng.choice(TITLE_A)), (2, rng.choice(PLACES)), (1, foreign(rng)))
    return first + rng.choice(TITLE_B) + pick(rng, (8, ""), (1, "2"), (1, "前传"))


def name(rng: random.Random) -> str:
    surname = rng.choice(SURNAMES)
    given = "".join(rng.choices(GIVEN, k=rng.choice((1, 2, 2))))
    return pick(rng, (8, surname + given), (2, foreign(rng)), (1, rng.choice("老小阿") + surname))


def address(rng: random.Random) -> str:
    place, street = rng.choice(PLACES), rng.choice(STREETS) + rng.choice("路街巷")
    return pick(
        rng,
        (4, place),
        (3, place + rng.choice("市区县镇")),
        (2, place + street),
        (1, f"{street}{rng.randint(1, 99)}号"),
        (2, rng.choice(FOREIGN_PLACES)),
        (1, rng.choice(SCENIC) + rng.choice(("小区", "村", "大厦"))),
    )


def scene(rng: random.Random) -> str:
    first = pick(rng, (3, rng.choice(SCENIC)), (1, rng.choice(PLACES)), (1, foreign(rng)))
    return pick(rng, (5, first + rng.choice(NATURE)), (1, rng.choice(SCENIC)), (1, rng.choice(PLACES)))


def organization(rng: random.Random) -> str:
    return pick(
        rng,
        (5, pick(rng, (4, rng.choice(PLACES)), (2, brand(rng)), (1, foreign(rng))) + rng.choice(BODIES)),
        (2, rng.choice(FOREIGN_PLACES)),
        (2, foreign(rng)),
        (1, rng.choice(PLACES) + brand(rng)),
    )


def company(rng: random.Random) -> str:
    return pick(
        rng,
        (4, brand(rng) + rng.choice(TRADES) + rng.choice(FORMS)),
        (3, brand(rng)),
        (2, rng.choice(PLACES) + rng.choice(TRADES)),
        (1, foreign(rng) + rng.choice(FORMS)),
    )


def government(rng: random.Random) -> str:
    return pick(
        rng,
        (4, rng.choice(PLACES) + rng.choice(AGENCIES)),
        (3, rng.choice(MINISTRIES)),
        (2, rng.choice(FOREIGN_PLACES) + rng.choice(("政府", "警方", "议会"))),
        (1, rng.choice(AGENCIES)),
    )


MAKERS: dict[str, Callable[[random.Random], str]] = {
    "address": address,
    "book": lambda rng: f"《{title(rng)}》",
    "company": company,
    "game": lambda rng: pick(rng, (5, f"《{title(rng)}》"), (4, title(rng)), (1, brand(rng))),
    "government": government,
    "movie": lambda rng: pick(rng, (6, f"《{title(rng)}》"), (1, title(rng))),
    "name": name,
    "organization": organization,
    "position": lambda rng: rng.choice(LEVELS) + rng.choice(RANKS),
    "scene": scene,
    "title": title,
    "place": lambda rng: rng.choice(PLACES),
    "rank": lambda rng: rng.choice(RANKS),
}
