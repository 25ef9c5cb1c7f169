"""What a stand-in has been called with."""


def having(calls, *words):
    return [call["words"] for call in calls if all(word in call["words"] for word in words)]
