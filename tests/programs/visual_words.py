"""Say which photographs show the same thing by visual words: visual_words.py WORDS IMAGE IMAGE ..."""

import json
import sys

import cv2
import numpy as np

words, names = int(sys.argv[1]), sys.argv[2:]
images = [cv2.imread(name, 0) for name in names]
sift = cv2.SIFT_create()
trainer = cv2.BOWKMeansTrainer(words)
for image in images:
    kp, des = sift.detectAndCompute(image, None)
    trainer.add(np.float32(des))
vocabulary = trainer.cluster()
extractor = cv2.BOWImgDescriptorExtractor(sift, cv2.BFMatcher(cv2.NORM_L2))
extractor.setVocabulary(vocabulary)
histograms = np.vstack([extractor.compute(image, sift.detect(image)) for image in images])
distances = np.linalg.norm(histograms[:, None] - histograms, axis=2) + 9 * np.eye(len(names))
print(json.dumps({"vocabulary": vocabulary.shape, "nearest": distances.argmin(axis=1).tolist()}))
