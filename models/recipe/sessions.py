"""Sessions to train on: long conversations in which what was said earlier is asked for, with a weight for every token.

A session is made whole and is trained on whole: a question's answer is always above it. What can be known only by
guessing (the digits of a new code, which thing is asked for next) hardly counts in the loss; what can be copied counts
more. Sessions come from a seed and are the same wherever they are made.
"""
import random
import re

import numpy as np

import dialogues as base
import tokenizer
from dialogues import ACK, ASK, NAMES, NOTE, THINGS
from phrases import *

# Weights of tokens: what is said; a reply that recalls, and the recalled words in it (set_weights()); a request made up, and
# the values made up in it.
TEXT, RECALL, VALUE, REPLY, CHANCE = 1.0, 1.0, 4.0, 1.0, 0.2
VARIED = 0.5  # of the dialogues have other values than in the dataset
REFUSALS = 0.25  # of the questions at the end of a session


def set_weights(value):
    global VALUE
    VALUE = value


class Session:
    """Turns as tokens and weights; `known` are the facts that can be asked for, by key, latest wins."""

    def __init__(self, r, m):
        self.r, self.m, self.tok = r, m, m.tok
        self.ids, self.weights = [self.tok.id["<|endoftext|>"]], [0.0]
        self.known, self.asked, self.turns, self.replies = {}, set(), [], []
        self.values, self.lists, self.topics = {}, {}, []

    def say(self, role, text, weight=TEXT, spans=(), span_weight=None):
        """One turn. The words of `spans` (strings found in text) weigh span_weight, the others weight."""
        tok = self.tok
        head = tok.head(role)
        ids, weights = list(head), [0.0] * len(head)
        if not spans:
            body = tok.encode_once(text)
            ids += body
            weights += [weight] * len(body)
        else:
            marked = bytearray(len(text))
            for s in spans:
                at = text.rfind(s)
                if at >= 0:
                    marked[at : at + len(s)] = b"\1" * len(s)
            for m in tokenizer.PRE.finditer(text):
                word = tok.word(m.group())
                ids += word
                weights += [span_weight if any(marked[m.start() : m.end()]) else weight] * len(word)
        ids += tok.end
        weights += [max(weight, 0.3 if role == "assistant" else 0), 0.0]
        self.ids += ids
        self.weights += weights
        self.turns.append((role, text))

    def user(self, text, values=()):
        """A generated request: which one comes is chance, and so are the values in it."""
        self.say("user", text, REPLY, values, CHANCE)

    def question(self, text):
        self.say("user", text, 0.2)

    def reply(self, text, values=()):
        self.replies.append((text, len(self.turns), values))
        self.say("assistant", text, RECALL, values, VALUE)

    def learn(self, key, fact):
        self.known.pop(key, None)
        self.asked.discard(key)
        self.known[key] = fact

    def ask(self, far=0.0):
        """Ask for one known thing, one not asked for yet if there is any; `far`: chance to take the oldest half."""
        keys = [k for k in self.known if k not in self.asked]
        if not keys or self.r.random() < 0.1:
            keys = list(self.known)
        if not keys:
            return refuse(self)
        facts = [k for k in keys if k[0] == "fact"]
        if len(facts) < len(keys):
            keys = facts if facts and self.r.random() < 0.6 else [k for k in keys if k[0] != "fact"]
        if len(keys) > 3 and self.r.random() < far:
            keys = keys[: len(keys) // 2]
        key = self.r.choice(keys)
        self.asked.add(key)
        self.known[key](self)


# ---- things to keep ---------------------------------------------------------
def any_value(r, thing, words):
    x = r.random()
    if x < 0.65:
        return base.thing_value(r, thing)
    if x < 0.8:
        return str(r.randint(10, 10 ** r.randint(2, 7)))
    if x < 0.9:
        return r.choice(NAMES) + " " + r.choice(SURNAMES)
    return " ".join(r.choice(words) for _ in range(r.randint(1, 3)))


def fresh_thing(s, like):
    """A thing not told yet; with chance `like` one that shares its last word with one that was, so that half a name is no key."""
    if s.r.random() < like:
        last = {k[1].split()[-1] for k in s.known if k[0] == "note"}
        alike = [t for t in THINGS + EXTRA if t.split()[-1] in last and ("note", t) not in s.known]
        if alike:
            return s.r.choice(alike)
    for _ in range(20):
        thing = s.r.choice(THINGS) if s.r.random() < 0.6 else s.r.choice(EXTRA)
        if ("note", thing) not in s.known:
            return thing
    return None


def asker(thing, value):
    def ask(s):
        x = s.r.random()
        if x < 0.8:
            s.question(s.r.choice(ASK if s.r.random() < 0.7 else MORE_ASK).format(t=thing))
            s.reply(f"Your {thing} is {value}.", [value])
        elif x < 0.9:
            s.question(s.r.choice(ASK_SHORT).format(t=thing))
            s.reply(f"{value}", [value])
        else:
            s.question(s.r.choice(ASK_IF).format(t=thing))
            s.reply(f"Your {thing} is {value}.", [value])

    return ask


def note(s):
    thing = fresh_thing(s, 0.3)
    if thing is None:
        return
    value = any_value(s.r, thing, s.m.words)
    s.user(s.r.choice(NOTE if s.r.random() < 0.7 else MORE_NOTE).format(t=thing, v=value), [thing, value])
    s.reply(s.r.choice(ACK).format(t=thing, v=value), [thing, value])
    s.learn(("note", thing), asker(thing, value))
    s.values[thing] = value


def correction(s):
    things = [k[1] for k in s.known if k[0] == "note"]
    if not things:
        return note(s)
    thing = s.r.choice(things)
    value, old = any_value(s.r, thing, s.m.words), s.values[thing]
    s.user(s.r.choice(CORRECT).format(t=thing, v=value, o=old), [thing, value])
    s.reply(s.r.choice(ACK_CORRECT).format(t=thing, v=value), [thing, value])
    s.learn(("note", thing), asker(thing, value))
    s.values[thing] = value


def person(s):
    """Several facts about one person or thing, told at once and asked for one by one."""
    r = s.r
    who = r.choice(PEOPLE)
    facts = {
        "name": r.choice(NAMES), "day": r.choice(DAYS), "time": clock(r), "price": f"{r.randint(2, 99) * 5} dollars",
        "phone number": f"555-{r.randint(1000, 9999)}", "street": f"{r.randint(2, 980)} {r.choice(STREETS)} Street",
    }
    chosen = r.sample(list(facts), r.randint(2, 4))
    told = [PERSON_TELL[k].format(v=facts[k]) for k in chosen]
    s.user(f"About the {who}: " + ", ".join(told) + ".", [who] + [facts[k] for k in chosen])
    s.reply(f"Noted: the {who}, " + ", ".join(told) + ".", [who] + [facts[k] for k in chosen])

    def one(k):
        def ask(s):
            s.question(s.r.choice(PERSON_ASK).format(k=k, w=who))
            s.reply(f"The {who}'s {k} is {facts[k]}.", [facts[k]])
        return ask

    def everything(s):
        s.question(s.r.choice(PERSON_ALL).format(w=who))
        s.reply(f"The {who}: " + ", ".join(told) + ".", [facts[k] for k in chosen])

    for key in [k for k in s.known if k[0] == "person" and k[1] == who]:
        s.known.pop(key)
    for k in chosen:
        s.learn(("person", who, k), one(k))
    s.learn(("person", who, None), everything)


def join(items):
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def listing(s):
    """A list begun, added to, taken from, and read out."""
    r, name = s.r, s.r.choice(list(LISTS))
    items = s.lists.get(name)
    if items is None:
        items = s.lists[name] = r.sample(LISTS[name], r.randint(2, 4))
        s.user(r.choice(LIST_START).format(n=name, i=join(items)), items)
        s.reply(r.choice(LIST_ACK).format(n=name, i=join(items)), items)
    elif len(items) > 1 and r.random() < 0.4:
        gone = r.choice(items)
        items = s.lists[name] = [i for i in items if i != gone]
        s.user(r.choice(LIST_DROP).format(n=name, i=gone), [gone])
        s.reply(f"I took {gone} off your {name}.", [gone])
    else:
        new = r.choice([i for i in LISTS[name] if i not in items])
        items = s.lists[name] = items + [new]
        s.user(r.choice(LIST_ADD).format(n=name, i=new), [new])
        s.reply(f"I added {new} to your {name}.", [new])
    now = list(items)

    def ask(s):
        s.question(s.r.choice(LIST_ASK).format(n=name))
        s.reply(f"Your {name}: {join(now)}.", [join(now)])

    s.learn(("list", name), ask)


def clock(r):
    return f"{r.randint(1, 12)}:{r.choice(['00', '15', '30', '45'])} {r.choice(['am', 'pm'])}"


def appointment(s):
    r = s.r
    what = r.choice(MEETINGS).format(n=r.choice(NAMES))
    day, time = r.choice(DAYS), clock(r)
    if ("meeting", what) in s.known:
        s.user(r.choice(MOVE).format(w=what, d=day, t=time), [what, day, time])
        s.reply(f"I moved {what} to {day} at {time}.", [what, day, time])
    else:
        s.user(r.choice(BOOK).format(w=what, d=day, t=time), [what, day, time])
        s.reply(r.choice(BOOKED).format(w=what, d=day, t=time), [what, day, time])

    def ask(s):
        s.question(s.r.choice(WHEN).format(w=what))
        s.reply(f"{what[0].upper() + what[1:]} is on {day} at {time}.", [f"{day} at {time}"])

    s.learn(("meeting", what), ask)


def repeat(s):
    """Copying by itself: a text to repeat, or something said earlier word by word."""
    r = s.r
    x = r.random()
    if x < 0.5 or len(s.turns) < 4:
        text = " ".join(r.choice(s.m.words) if r.random() < 0.6 else str(r.randint(0, 9999)) for _ in range(r.randint(3, 12)))
        s.say("user", r.choice(["Repeat: ", "Say: ", "Repeat after me: "]) + text, REPLY, [text], CHANCE)
        return s.reply(text, [text])
    said = [i for i, (role, text) in enumerate(s.turns) if len(text) > 12]
    if not said:
        return None
    i = r.choice(said)
    role, text = s.turns[i]
    if x < 0.7 and i + 1 < len(s.turns) and role == "user" and len(text) < 160 and sum(t == text for _, t in s.turns) == 1:
        s.question(f'What did you answer to "{text}"?')
        return s.reply(s.turns[i + 1][1], [s.turns[i + 1][1]])
    words = text.split(" ")
    if len(words) < 6:
        return None
    begin = " ".join(words[:3])
    if sum(begin in t for _, t in s.turns) != 1:
        return None
    s.question(r.choice(GO_ON).format(b=begin))
    return s.reply(text, [text[len(begin) :]])


def refuse(s):
    """Something that was never said. The reply begins as one that recalls and says so where the value would stand: there the
    search for the value has just failed, whereas its first word would have to know that ahead."""
    r = s.r
    x = r.random()
    if x < 0.5:
        thing = fresh_thing(s, 0.5)
        if thing and r.random() < 0.1:
            s.question(r.choice(ASK_SHORT).format(t=thing))
            s.reply("Not known, you never told me.", ["Not known"])
        elif thing:
            s.question(r.choice(ASK if r.random() < 0.6 else MORE_ASK + ASK_IF).format(t=thing))
            s.reply(f"Your {thing} is not known to me, you never told me.", ["not known"])
    elif x < 0.82:
        names, words = {k[1] for k in s.known if k[0] == "fact"}, set(s.topics)
        absent = [k for k in s.m.slots if base.DOMAIN_WORDS[k[0]] not in words]
        alike = [k for k in absent if k[1].replace("_", " ") in names]  # the same was told of something else
        if absent:
            domain, slot = r.choice(alike if alike and r.random() < 0.5 else absent)
            slot, word = slot.replace("_", " "), base.DOMAIN_WORDS[domain]
            s.question(r.choice(base.RECALL_Q).format(slot=slot, dom=word))
            s.reply(r.choice(base.RECALL_A).format(slot=slot, dom=word, v="never mentioned"), ["never mentioned"])
    elif x < 0.88:
        name = r.choice(list(LISTS))
        if name not in s.lists:
            s.question(r.choice(LIST_ASK).format(n=name))
            s.reply(f"Your {name}: nothing, you never told me of one.", ["nothing"])
    elif x < 0.94:
        what = r.choice(MEETINGS).format(n=r.choice(NAMES))
        if ("meeting", what) not in s.known:
            s.question(r.choice(WHEN).format(w=what))
            s.reply(f"{what[0].upper() + what[1:]} is not known to me, you never told me of it.", ["not known"])
    else:
        who, k = r.choice(PEOPLE), r.choice(list(PERSON_TELL))
        if ("person", who, k) not in s.known:
            s.question(r.choice(PERSON_ASK).format(k=k, w=who))
            s.reply(f"The {who}'s {k} is not known to me, you never told me.", ["not known"])


def summary(s):
    """Everything noted so far, or what was talked about, in order."""
    things = [k[1] for k in s.known if k[0] == "note"]
    if 1 <= len(things) <= 5 and s.r.random() < 0.7:
        s.question(s.r.choice(SUM_NOTES))
        s.reply("You told me: " + "; ".join(f"your {t} is {s.values[t]}" for t in things) + ".", [s.values[t] for t in things] + things)
    elif s.topics:
        topics = [f"the {t}" for t in s.topics[-5:]]
        s.question(s.r.choice(SUM_TALK))
        s.reply(f"We talked about {join(topics)}.", [join(topics)])


def small_talk(s):
    q, a = s.r.choice(SMALL)
    s.question(q)
    s.say("assistant", a)


# ---- dialogues ----------------------------------------------------------------
def vary(r, d, pool, words):
    """The dialogue with some of its facts' values exchanged, wherever they are said: for others of the same slot, or for words
    that never were one."""
    turns, facts = d["turns"], dict(d["facts"])
    for key, old in d["facts"].items():
        if len(old) < 4 or r.random() < 0.5 or sum(old.lower() in v.lower() for v in d["facts"].values()) > 1:
            continue
        new = r.choice(pool[key])
        if old.replace(" ", "").isalpha() and r.random() < 0.3:
            new = " ".join(r.choice(words) for _ in range(r.randint(1, 2)))
            new = new.title() if old[0].isupper() else new
        if any(new.lower() in v.lower() or v.lower() in new.lower() for v in facts.values()):
            continue
        pattern = re.compile(r"(?<!\w)" + re.escape(old) + r"(?!\w)", re.I)
        changed = [(role, pattern.sub(lambda _: new, text)) for role, text in turns]
        if changed != list(turns):
            turns, facts[key] = changed, new
    return turns, facts


def fact_asker(slot, word, value):
    def ask(s):
        if s.r.random() < 0.85:
            s.question(s.r.choice(base.RECALL_Q).format(slot=slot, dom=word))
        else:
            s.question(s.r.choice(MORE_RECALL_Q).format(slot=slot, dom=word))
        s.reply(s.r.choice(base.RECALL_A).format(slot=slot, dom=word, v=value), [value])

    return ask


def dialogue(s, m, insert, room):
    """One dialogue of the dataset of at most `room` tokens, if one is found; with chance `insert` before a user's turn
    something else comes between."""
    r = s.r
    for _ in range(40):
        d = r.choice(m.dialogues)
        words = d["words"]
        if words.isdisjoint(s.topics[-8:]) and m.length(d) * (1 + 1.5 * insert) <= room:
            break
    else:
        return False
    turns, facts = vary(r, d, m.pool, m.words) if r.random() < VARIED else (d["turns"], d["facts"])
    for key in [k for k in s.known if k[0] == "fact" and k[2] in words]:
        s.known.pop(key)
    for i, (role, text) in enumerate(turns):
        if role == "user" and i and r.random() < insert:
            r.choices(INSERTS, INSERT_SHARES)[0](s)
        s.say(role, text)
    s.topics += [w for w in sorted(words) if w not in s.topics[-8:]]
    said = m.said(turns)
    for (domain, slot), value in facts.items():
        if m.spoken(value, said):
            word, name = base.DOMAIN_WORDS.get(domain, domain.lower()), slot.replace("_", " ")
            s.learn(("fact", name, word), fact_asker(name, word, value))
    return True


INSERTS = [note, correction, lambda s: s.ask(0.3), refuse, listing, appointment, person, small_talk, repeat]
INSERT_SHARES = [16, 2, 7, 3, 1, 1, 1, 0.5, 0.7]
DENSE = [note, correction, lambda s: s.ask(0.3), refuse, listing, appointment, person, repeat, summary, small_talk]
DENSE_SHARES = [30, 6, 45, 15, 6, 6, 6, 8, 2, 1]


class Material:
    """The dialogues, the values their slots take, and the tokenizer, loaded once."""

    def __init__(self, source, vocab, split="train"):
        self.dialogues = base.load(source, split)
        self.tok = tokenizer.Tokenizer(vocab)
        self.pool = {}
        for d in self.dialogues:
            d["words"] = {base.DOMAIN_WORDS.get(x, x.lower()) for x in d["domains"]}
            for key, value in d["facts"].items():
                self.pool.setdefault(key, []).append(value)
        self.words = [t[1:] for t in self.tok.tokens if t.startswith("Ġ") and t[1:].isalpha() and len(t) > 3]
        self.slots = sorted(k for k in self.pool if k[0] in base.DOMAIN_WORDS)

    def length(self, d):
        """Tokens of a dialogue, as it is in the dataset."""
        if "length" not in d:
            d["length"] = sum(len(self.tok.encode_once(text)) + 5 for _, text in d["turns"])
        return d["length"]

    @staticmethod
    def said(turns):
        return " ".join(text for _, text in turns).lower()

    @staticmethod
    def spoken(value, said):
        return re.search(r"(?<!\w)" + re.escape(value.lower()) + r"(?!\w)", said) is not None


def converse(m, seed, tokens, kind):
    """A Session of about `tokens`. kind: dense (all recall), mixed (dialogues, much asked for), plain (little)."""
    r = random.Random(seed)
    s = Session(r, m)
    s.say("system", r.choice(base.SYSTEM).format(a=r.choice(base.APPS)), 0.2)
    if kind == "dense":
        while len(s.ids) < tokens - 60:
            r.choices(DENSE, DENSE_SHARES)[0](s)
    else:
        insert = 0.08 if kind == "plain" else r.choice([0.1, 0.2, 0.3, 0.4])
        body = tokens * (0.95 if kind == "plain" else r.choice([0.55, 0.7, 0.85]))
        while dialogue(s, m, insert, body - len(s.ids)):
            for _ in range(r.randint(0, 2)):
                len(s.ids) < body and s.ask(0.3)
        if r.random() < 0.2:
            summary(s)
        while len(s.ids) < tokens - 40:
            refuse(s) if r.random() < REFUSALS else s.ask(0.2)
    return s


def session(m, seed, tokens, kind):
    """converse() as (ids uint16, weights float32)."""
    s = converse(m, seed, tokens, kind)
    return np.array(s.ids, np.uint16), np.array(s.weights, np.float32)
