class Tokenizer:
    def __init__(self, letters):
        self.letters = letters
        self.ids = {letter: i for i, letter in enumerate(letters)}

    def encode(self, text):
        return [self.ids[letter] for letter in text]

    def decode(self, ids):
        return "".join(self.letters[i] for i in ids)

    def __len__(self):
        return len(self.letters)

    def __getitem__(self, index):
        return self.letters[index]

    def __iter__(self):
        return iter(self.letters)

    def __contains__(self, letter):
        return letter in self.ids
