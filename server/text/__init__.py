"""What texts are to one tokenizer: the text of tokens, the least number of tokens of a text, names of control tokens.

In: a tokenizer, and texts or tokens. Out: texts, bounds, token ids. Nothing here keeps state between requests.
"""
