"""The dialogues of the Schema-Guided Dialogue dataset, and the plain notes and questions joined to them.

The held-out cases (questions.py) and the tokenizer's sample are made from a seed with what stands here: change nothing
here without making both anew. What only the training sessions say is in phrases.py.
"""
import json
import lzma


def load(source, split):
    """The split's dialogues: turns, the facts (slot values) said in them, their domains."""
    out = []
    for line in lzma.open(f"{source}/{split}.jsonl.xz", "rt"):
        d = json.loads(line)
        turns = [("user" if speaker == "U" else "assistant", text) for speaker, text in d["turns"]]
        said = " ".join(text for _, text in turns).lower()
        facts = {tuple(name.split(".")): value for name, value in d["facts"].items() if value.lower() in said}
        out.append({"turns": turns, "facts": facts, "domains": set(d["domains"])})
    return out


DOMAIN_WORDS = {"RentalCars": "rental car", "RideSharing": "ride", "Restaurants": "restaurant", "Media": "movie",
  "Banks": "bank", "Buses": "bus", "Calendar": "calendar", "Events": "event", "Flights": "flight", "Homes": "apartment",
  "Hotels": "hotel", "Movies": "movie", "Music": "music", "Services": "appointment", "Travel": "travel",
  "Weather": "weather", "Alarm": "alarm", "Messaging": "message", "Payment": "payment", "Trains": "train"}
RECALL_Q = ["What was the {slot} for the {dom}?", "Remind me, which {slot} did we use for the {dom}?",
  "I forgot the {slot} of the {dom}. What was it?", "Earlier we talked about the {dom}. What was the {slot}?",
  "Can you tell me the {slot} for the {dom} again?"]
RECALL_A = ["The {slot} was {v}.", "For the {dom}, the {slot} was {v}."]

THINGS = ["locker code", "wifi password", "gate number", "parking spot", "room number", "order number", "ticket code",
  "door code", "seat number", "flight number", "tracking code", "membership number", "license plate", "safe code",
  "badge number", "invoice number", "bike lock code", "alarm code", "pickup code", "router pin",
  "sister's birthday", "dentist's name", "favorite color", "dog's name", "landlord's name", "coach's name",
  "doctor's name", "hotel city", "teacher's name", "boss's name", "neighbor's name", "meeting time"]
NAMES = "Alice Bruno Carla Dmitri Elena Farid Grace Hassan Ines Jorge Keiko Liam Mei Nadia Oscar Priya Quinn Rosa Samir Tara Umar Vera Wendy Xavier Yara Zoe Anton Bianca Cyril Daphne Emil Fiona Gustav Hana Igor Jasmin Kofi Lena Marco Nora Omar Paula Rafael Sofia Tomas Ursula Viktor Yusuf".split()
COLORS = "red blue green yellow purple orange black white brown silver gold pink".split()
CITIES = "Lisbon Oslo Cairo Lima Quito Hanoi Delhi Kyoto Perth Dublin Vienna Prague Zurich Athens Boston Austin Denver Dallas Miami Seattle".split()
MONTHS = "January February March April May June July August September October November December".split()

def thing_value(r, thing):
    if "name" in thing: return r.choice(NAMES)
    if "color" in thing: return r.choice(COLORS)
    if "city" in thing: return r.choice(CITIES)
    if "birthday" in thing: return f"{r.choice(MONTHS)} {r.randint(1, 28)}"
    if "time" in thing: return f"{r.randint(1, 12)}:{r.choice(['00','15','30','45'])} {r.choice(['am','pm'])}"
    if "password" in thing or "plate" in thing or "code" in thing and r.random() < .3:
        return r.choice(COLORS) + str(r.randint(10, 99))
    return str(r.randint(1000, 9999))

NOTE = ["Remember that my {t} is {v}.", "Please note: my {t} is {v}.", "My {t} is {v}, keep it in mind.", "By the way, my {t} is {v}."]
ACK = ["Got it, I will remember your {t}.", "Noted, your {t} is {v}.", "Okay, I saved your {t}."]
ASK = ["What is my {t}?", "Do you remember my {t}?", "I need my {t}, what is it?", "Tell me my {t} again."]
ANS = ["Your {t} is {v}."]
SYSTEM = ["You are a helpful assistant on a phone.", "You are the assistant of the {a} app.", "You help the user of the {a} app. Be brief.",
  "Answer the user's requests in the {a} app and remember what they tell you."]
APPS = ["Messages", "Calendar", "Maps", "Notes", "Travel", "Music", "Mail", "Wallet", "Photos", "Home", "Weather", "Tasks", "Food", "Rides", "Health", "News"]

def ask(r, f):
    kind, a, dom, v = f
    if kind == "note":
        return [("user", r.choice(ASK).format(t=a)), ("assistant", r.choice(ANS).format(t=a, v=v))]
    return [("user", r.choice(RECALL_Q).format(slot=a, dom=dom)), ("assistant", r.choice(RECALL_A).format(slot=a, dom=dom, v=v))]

def sample(r, dialogues, target_turns):
    """A session of turns as the tokenizer was trained on."""
    turns = [("system", r.choice(SYSTEM).format(a=r.choice(APPS)))]
    known, used, asked = [], set(), set()
    things = r.sample(THINGS, 6)
    while len(turns) < target_turns:
        for _ in range(20):
            d = r.choice(dialogues)
            if not (d["domains"] & used): break
        else: used = set(d["domains"])
        used |= d["domains"]
        body = list(d["turns"])
        facts = [("fact", s.replace("_", " "), DOMAIN_WORDS.get(dom, dom.lower()), v) for (dom, s), v in d["facts"].items()]
        k = 0
        for i, t in enumerate(body):
            if t[0] == "user" and things and r.random() < .08:
                th = things.pop(); v = thing_value(r, th)
                turns += [("user", r.choice(NOTE).format(t=th, v=v)), ("assistant", r.choice(ACK).format(t=th, v=v))]
                known.append(("note", th, None, v))
            elif t[0] == "user" and known and r.random() < .08:
                turns += ask(r, r.choice(known))
            turns.append(t)
        known += facts
        for _ in range(r.randint(1, 3)):
            if known: turns += ask(r, r.choice(known))
    return turns

