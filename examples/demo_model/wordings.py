"""The ways in which a question may be worded.

{image} stands for "image", "picture" or "photo"; {kind}, {kinds} and {a kind} for a shape, with or without its colour.
"""

from __future__ import annotations

from random import Random

CONTENTS = (
    "What is in this {image}?",
    "What is in this {image}?",
    "What is in this {image}?",
    "What is in the {image}?",
    "What's in this {image}?",
    "What's in the {image}?",
    "What do you see?",
    "What do you see in this {image}?",
    "What can you see in the {image}?",
    "What can be seen here?",
    "What can you see?",
    "What does this {image} show?",
    "What does the {image} show?",
    "What is shown in this {image}?",
    "What is shown here?",
    "What is on this {image}?",
    "What is this?",
    "What is that?",
    "What's this?",
    "What is it?",
    "What is this a {image} of?",
    "What shapes are there?",
    "What shapes do you see?",
    "Which shapes are in the {image}?",
    "What shapes are in this {image}?",
    "What objects are in this {image}?",
    "What things are in the {image}?",
    "Tell me what is in this {image}.",
    "Tell me what you see.",
    "Can you tell me what is in this {image}?",
    "Can you tell me what you see in the {image}?",
    "List the shapes in this {image}.",
    "List everything in the {image}.",
    "Name the shapes.",
    "What is depicted in this {image}?",
    "What is there in this {image}?",
    "What is here?",
    "What is visible in the {image}?",
)
DESCRIPTION = (
    "Describe this {image}.",
    "Describe this {image}.",
    "Describe the {image}.",
    "Describe this {image} in one sentence.",
    "Describe what you see.",
    "Describe this.",
    "Describe it in detail.",
    "Describe this {image} in detail.",
    "Give a description of this {image}.",
    "Give me a short description of the {image}.",
    "Can you describe this {image}?",
    "Write a caption for this {image}.",
    "Caption this {image}.",
    "Tell me about this {image}.",
    "Explain this {image}.",
    "Tell me everything about the {image}.",
)
COLOR = (
    "What color is the {kind}?",
    "What color is the {kind}?",
    "What is the color of the {kind}?",
    "What's the color of the {kind}?",
    "Which color is the {kind}?",
    "Which color does the {kind} have?",
    "What color does the {kind} have?",
    "The {kind} is what color?",
    "Tell me the color of the {kind}.",
    "In which color is the {kind} drawn?",
    "What color is the {kind} in this {image}?",
)
COLORS = (
    "What color are the {kind}s?",
    "What colors are the {kind}s?",
    "Which colors do the {kind}s have?",
    "What are the colors of the {kind}s?",
    "Tell me the colors of the {kind}s.",
)
KIND = (
    "What shape is {color}?",
    "Which shape is {color}?",
    "What is {color}?",
    "What is the {color} shape?",
    "What is the {color} thing?",
    "What shape is the {color} one?",
    "What shape is the {color} object?",
    "What is the shape of the {color} object?",
    "Which shapes are {color}?",
)
COUNT = (
    "How many {kinds} are there?",
    "How many {kinds} are there?",
    "How many {kinds} are in this {image}?",
    "How many {kinds} are in the {image}?",
    "How many {kinds} do you see?",
    "How many {kinds} can you see?",
    "How many {kinds}?",
    "Count the {kinds}.",
    "Count the {kinds} in this {image}.",
    "What is the number of {kinds}?",
    "Tell me how many {kinds} there are.",
    "How many {kinds} are shown?",
    "How many {kinds} does the {image} have?",
)
PRESENCE = (
    "Is there {a kind}?",
    "Is there {a kind}?",
    "Is there {a kind} in this {image}?",
    "Is there {a kind} in the {image}?",
    "Do you see {a kind}?",
    "Can you see {a kind}?",
    "Does this {image} contain {a kind}?",
    "Does the {image} show {a kind}?",
    "Are there any {kinds}?",
    "Are there {kinds} in this {image}?",
    "Are there any {kinds} in the {image}?",
    "Is {a kind} in this {image}?",
)
ANYTHING = ("Is there anything {color}?", "Is anything {color}?", "Is there something {color} in the {image}?")
PLACE = (
    "Where is the {kind}?",
    "Where is the {kind} in this {image}?",
    "Where is the {kind} in the {image}?",
    "Where can I find the {kind}?",
    "Where do you see the {kind}?",
    "In which part of the {image} is the {kind}?",
    "What is the position of the {kind}?",
)
SIZE = (
    "How big is the {kind}?",
    "How large is the {kind}?",
    "What size is the {kind}?",
    "What is the size of the {kind}?",
    "Is the {kind} small or large?",
    "Is the {kind} big or small?",
    "Is the {kind} large or small?",
)
BACKGROUND = (
    "What color is the background?",
    "What is the background color?",
    "What is the color of the background?",
    "Which color does the background have?",
    "What color is the background of this {image}?",
    "Describe the background.",
)
NUMBER_OF_IMAGES = (
    "How many {image}s are there?",
    "How many {image}s do you see?",
    "How many {image}s did I send?",
    "How many {image}s?",
)
CONTENTS_OF_SEVERAL = (
    "What is in these {image}s?",
    "What is in these {image}s?",
    "What is in the {image}s?",
    "What's in these {image}s?",
    "What do you see in these {image}s?",
    "What do these {image}s show?",
    "What do you see?",
    "What is shown in these {image}s?",
    "Describe these {image}s.",
    "Describe the {image}s.",
    "Describe both {image}s.",
    "What is in both {image}s?",
    "What is in each {image}?",
    "Compare these {image}s.",
    "What is in this {image}?",
    "What is in the {image}?",
    "Describe this {image}.",
)
CONTENTS_OF_NTH = (
    "What is in the {ordinal} {image}?",
    "What is in the {ordinal} {image}?",
    "What's in the {ordinal} {image}?",
    "What does the {ordinal} {image} show?",
    "What do you see in the {ordinal} {image}?",
    "Describe the {ordinal} {image}.",
    "What is shown in the {ordinal} {image}?",
    "And the {ordinal} {image}?",
)

NO_PICTURE = "I see no picture. Please send me one."
_WHO = "I am a small demo model. I answer questions about pictures of simple shapes."
_OTHER = "I can only answer questions about pictures of simple shapes."
SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("Hello!", "Hi!", "Hey", "Hello there.", "Good morning!", "Good evening.", "Hi there", "Hello, how are you?"),
        "Hello! I am a small demo model. Ask me about a picture of simple shapes.",
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "What can you do?",
            "Tell me about yourself.",
            "Are you a human?",
            "Which model are you?",
            "Help",
            "How do you work?",
            "Who made you?",
            "Introduce yourself.",
            "What is this model?",
        ),
        _WHO,
    ),
    (("Thank you.", "Thanks!", "Thank you very much!", "Great, thanks.", "Well done."), "You are welcome."),
    (("Bye.", "Goodbye!", "See you."), "Goodbye!"),
    (
        (
            "What is the capital of France?",
            "Tell me a joke.",
            "Write a poem about the sea.",
            "What is two plus two?",
            "What is 17 times 23?",
            "How is the weather today?",
            "Translate this to German.",
            "Write a Python function that sorts a list.",
            "Who is the president?",
            "What time is it?",
            "Tell me a story about a dragon.",
            "Explain quantum physics to me.",
            "How do I cook rice?",
            "Is there life on Mars?",
            "What is the meaning of life?",
            "Once upon a time",
            "Say something.",
            "Can you sing?",
            "Summarize the following text: the quick brown fox jumps over the lazy dog.",
            "Why is the sky blue?",
            "Count to ten.",
            "Repeat after me: one, two, three.",
            "test",
            "The quick brown fox",
            "Write a long story.",
        ),
        _OTHER,
    ),
)


def vary(question: str, rng: Random) -> str:
    """The question as different people type it: other nouns and spelling, lower case, no mark, a word of politeness."""
    question = question.replace("{image}", rng.choices(("image", "picture", "photo"), weights=(5, 4, 1))[0])
    if rng.random() < 0.15:
        question = question.replace("color", "colour")
    if rng.random() < 0.06:
        opening = rng.choice(("Please tell me: ", "Hello! ", "Hi, ", "Look at this. ", "Please answer: "))
        question = opening + question
    elif rng.random() < 0.05:
        question = question.rstrip("?.! ") + rng.choice((", please?", " please", " Answer in one sentence."))
    if rng.random() < 0.25:
        question = question.rstrip("?.!")
    if rng.random() < 0.3:
        question = question[0].lower() + question[1:] if rng.random() < 0.5 else question.lower()
    return question.upper() if rng.random() < 0.01 else question
