"""Local classifiers as rules, the controls that they are compared with, and DTG-FF's dense hybrid."""
