"""What the file of named_entities.py is made of: names, and the frames they go into, to learn from and for the test."""

NAMES = {  # to learn from, for the test
    "PER": (
        ["Anna Berg", "Omar Haddad", "Lucy Chen", "Peter Novak", "Maria Rossi", "John Carter", "Priya Nair",
         "Paul Weber", "Elena Petrova", "David Kim", "Sara Lindqvist", "Hugo Martin"],
        ["Grace Okafor", "Ivan Horvat", "Mei Tanaka", "Thomas Miller", "Fatima Zahra", "Oscar Wilde"],
    ),
    "LOC": (
        ["Paris", "New Delhi", "Kenya", "Lake Geneva", "Brazil", "San Diego", "Oslo", "Cape Town", "Poland",
         "Kyoto", "Quebec", "North Wales"],
        ["Hamburg", "Sri Lanka", "Chicago", "Lake Victoria", "Portugal", "San Antonio"],
    ),
    "ORG": (
        ["Siemens", "Red Cross", "Oxford University", "Nokia", "World Bank", "Toyota", "Green Party",
         "Deutsche Bank", "Pfizer", "Reuters", "Boston Hospital", "Air France"],
        ["Samsung", "Stanford University", "Greenpeace", "Royal Bank", "Volvo", "Labour Party"],
    ),
}  # fmt: skip
LEARN = """
PER lives in LOC .
PER works for ORG in LOC .
ORG opened an office in LOC last year .
the plane to LOC was late .
shares of ORG fell after the report .
PER met PER at a lunch in LOC .
yesterday ORG named PER as its new director .
it rained all week in LOC and LOC .
I read a long letter from PER .
a spokesman of ORG denied the story .
we asked PER about the weather .
ORG and ORG will build the road to LOC .
PER left ORG in spring .
LOC has many old churches .
the food in LOC is good .
nobody at ORG answered the phone .
PER sang , and then PER danced .
farmers near LOC sold milk to ORG .
the children kicked a ball over the fence .
students at ORG wrote to PER about money .
dogs and cats slept under the tree .
the tower in LOC is tall .
my brother PER drove to town to find a new coat .
thieves robbed a shop in LOC , and PER saw them .
"""
TEST = """
PER was born in LOC .
engineers at ORG admire PER .
the river near LOC is wide .
workers of ORG went on strike in LOC .
my friend PER flew home from LOC to see a doctor .
PER bought a car from ORG .
ORG was sued by PER .
"""
FRAMES = LEARN.strip().splitlines(), TEST.strip().splitlines()
