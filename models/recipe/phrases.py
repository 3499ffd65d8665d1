"""What users of the generated sessions say, and what they talk about."""
from dialogues import NAMES

EXTRA = [f"{a} {b}" for a in "locker bank gym office garage suitcase garden boat cabin school piano printer camera bike tent desk".split()
         for b in "code number name password color key date place".split()]
SURNAMES = "Abbott Becker Costa Dubois Egan Fuchs Garcia Hughes Ivanov Jansen Kaya Lopez Meyer Novak Okafor Patel Quist Rossi Silva Tanaka Udall Vega Weber Young Zhang".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday tomorrow".split()
STREETS = "Oak Maple Main Church Mill Park River Lake Hill Station School Bridge Garden King Queen Cedar".split()
MORE_NOTE = ["Keep this for me: my {t} is {v}.", "Save my {t}: {v}.", "Just so you know, my {t} is {v}.", "Can you remember that my {t} is {v}?",
    "Note that my {t} is {v}.", "My {t} is {v}.", "Write down my {t}, it is {v}.", "Don't forget, my {t} is {v}."]
MORE_ASK = ["What was my {t}?", "What did I say my {t} is?", "Which {t} did I give you?", "I forgot my {t}.", "Could you tell me my {t}?",
    "What's my {t} again?", "Remind me of my {t}.", "Can you look up my {t}?", "Give me my {t}, please."]
ASK_SHORT = ["My {t}, in short?", "Only the value, please: my {t}?", "Just my {t}, nothing else."]
ASK_IF = ["Did I tell you my {t}?", "Do you know my {t}?", "Have I mentioned my {t}?"]
CORRECT = ["No, my {t} is {v} now.", "Actually, my {t} is {v}.", "My {t} has changed, it is {v} now.", "Sorry, I was wrong: my {t} is {v}, not {o}.",
    "Change my {t} to {v}.", "Correction: my {t} is {v}."]
ACK_CORRECT = ["Okay, your {t} is {v} now.", "I changed your {t} to {v}.", "Got it, your {t} is {v}."]
PEOPLE = "plumber electrician gardener babysitter mechanic tutor cleaner vet painter carpenter trainer accountant lawyer photographer hairdresser baker florist courier".split()
PERSON_TELL = {"name": "the name is {v}", "day": "the day is {v}", "time": "the time is {v}", "price": "the price is {v}",
    "phone number": "the phone number is {v}", "street": "the street is {v}"}
PERSON_ASK = ["What is the {w}'s {k}?", "Tell me the {k} of the {w}.", "What was the {k} of the {w} again?", "The {w}'s {k}, please."]
PERSON_ALL = ["What do you know about the {w}?", "Tell me everything about the {w}.", "What did I tell you about the {w}?"]
LISTS = {
    "shopping list": "eggs milk bread cheese apples rice butter coffee tea sugar flour onions tomatoes potatoes pasta salt yogurt honey soap lemons".split(),
    "packing list": "socks passport charger towel sunscreen jacket hat toothbrush camera book umbrella shoes pillow map gloves".split(),
    "reading list": "Dracula Emma Ulysses Hamlet Dune Beloved Persuasion Middlemarch Frankenstein Walden Candide Faust".split(),
    "guest list": NAMES,
    "task list": ["call the bank", "water the plants", "pay the rent", "wash the car", "book a table", "fix the lamp", "buy stamps", "return the keys",
        "renew the passport", "clean the oven", "send the invoice", "back up the photos"],
}
LIST_START = ["Start a {n}: {i}.", "Make a {n} with {i}.", "New {n}, please: {i}.", "Put {i} on my {n}."]
LIST_ACK = ["Your {n} has {i}.", "I made your {n}: {i}.", "Okay, your {n}: {i}."]
LIST_ADD = ["Add {i} to my {n}.", "Also put {i} on my {n}.", "My {n} needs {i} too."]
LIST_DROP = ["Take {i} off my {n}.", "Remove {i} from my {n}.", "I don't need {i} on my {n}."]
LIST_ASK = ["What is on my {n}?", "Read me my {n}.", "Show my {n}.", "What do I have on my {n}?"]
MEETINGS = ["lunch with {n}", "the call with {n}", "dinner with {n}", "the meeting with {n}", "coffee with {n}", "the review with {n}",
    "tennis with {n}", "the interview with {n}", "the haircut", "the dentist visit", "the piano lesson", "the team meeting", "the school concert"]
BOOK = ["Put {w} on {d} at {t}.", "Schedule {w} for {d} at {t}.", "I have {w} on {d} at {t}.", "Add {w} to my calendar, {d} at {t}."]
BOOKED = ["I added {w} on {d} at {t}.", "Done, {w} is on {d} at {t}.", "Okay, {w}, {d} at {t}."]
MOVE = ["Move {w} to {d} at {t}.", "Change {w} to {d} at {t}.", "{w} is on {d} at {t} now."]
WHEN = ["When is {w}?", "What time is {w}?", "Remind me when {w} is.", "On which day is {w}?"]
GO_ON = ['One of us said "{b}". How did it go on?', 'What was the message that began with "{b}"?', 'Quote the message that starts "{b}".']
SUM_NOTES = ["What did I ask you to remember?", "List what you noted for me.", "Which notes do you have?", "Sum up my notes."]
SUM_TALK = ["What did we talk about?", "Sum up our conversation.", "What have we done so far?"]
MORE_RECALL_Q = ["What {slot} did we have for the {dom}?", "Which {slot} was it for the {dom}?", "Tell me the {slot} of the {dom}.",
    "About the {dom}: what was the {slot}?", "What {slot} did I choose for the {dom}?"]
SMALL = [("Hello.", "Hello. What can I do for you?"), ("Hi there!", "Hi! How can I help you?"), ("Thanks.", "You are welcome."),
    ("Thank you so much.", "You're welcome. Is there anything else?"), ("Good morning.", "Good morning. How can I help?"),
    ("Who are you?", "I am the assistant on your phone."), ("What can you do?", "I keep your notes, lists and appointments, and help you book and find things."),
    ("That is all for now.", "Okay. Have a great day!"), ("Okay.", "Anything else I can do?"), ("Bye.", "Goodbye!"), ("Great.", "Glad to help."),
    ("Can you remember things?", "Yes, tell me and I will keep them in mind."), ("Are you there?", "Yes, I am here.")]
