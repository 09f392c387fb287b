"""Words into features: the chat template, the tokenizer, the cached prompt encoder.

template      the text the language model reads around a prompt
tokenizer     that text as token ids, with the prefix asserted and long prompts cut
encoder       token ids as features of the chosen layers, cached
reasoner      a rewritten prompt, cleaned of the language model's markers
vocabulary    a small vocabulary cut from the full one, for a small language model
"""
