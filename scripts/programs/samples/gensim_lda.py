"""gensim's LdaMulticore: its workers run for ever in their pool's initializer, and share queues with the program."""

import logging
import random

from gensim.corpora import Dictionary
from gensim.models import LdaMulticore

WORDS = [f"word{number}" for number in range(60)]


def main():
    logging.basicConfig(level=logging.ERROR)
    chosen = random.Random(7)
    texts = [chosen.sample(WORDS[:30] if number % 2 else WORDS[30:], 12) for number in range(200)]
    dictionary = Dictionary(texts)
    corpus = [dictionary.doc2bow(text) for text in texts]
    # One chunk, taken by one worker: which worker takes the second is chance.
    once = LdaMulticore(corpus, id2word=dictionary, num_topics=2, workers=2, chunksize=len(corpus), random_state=1)
    print(once.show_topics(num_words=5))
    print([round(float(share), 4) for _, share in once.get_document_topics(corpus[0], minimum_probability=0)])
    many = LdaMulticore(corpus, id2word=dictionary, num_topics=2, workers=2, chunksize=20, passes=3, random_state=1)
    print(many.num_updates, many.get_topics().shape)


if __name__ == "__main__":
    main()
