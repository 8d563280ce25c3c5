"""scikit-learn's tools around a rule: a grid search over rules and widths, probabilities, a stream of batches, numbers.

Run it: python scikit_learn.py          (twenty seconds on one core)
Expect: 98 % of unseen digits by the best of the grid, and 99 by FOTON where its probability is above 0.9;
        90 after one pass over a stream, and 87 % of the variance of unseen numbers; to two on another machine.
"""

import numpy as np
from sklearn.datasets import load_digits, make_friedman1
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from prograde.accelerated.training import ForwardOnlyClassifier, ForwardOnlyRegressor

x, unseen_x, y, unseen_y = train_test_split(*load_digits(return_X_y=True), random_state=0)

pipeline = make_pipeline(MinMaxScaler(), ForwardOnlyClassifier(max_iter=10, random_state=0))
settings = {
    "forwardonlyclassifier__rule": ["backprop", "foton", "ftp"],
    "forwardonlyclassifier__hidden_layer_sizes": [(64,), (128, 64)],
}
search = GridSearchCV(pipeline, settings, cv=3).fit(x, y)
for setting, mean in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True):
    print(f"cross-validation {mean:.1%}", *setting.values())
print(f"best of the grid {search.score(unseen_x, unseen_y):.1%} of unseen digits")

foton = ForwardOnlyClassifier("foton", early_stopping=True, n_iter_no_change=5, random_state=0).fit(x, y)
probability = foton.predict_proba(unseen_x)
sure = probability.max(axis=1) > 0.9
right = foton.predict(unseen_x) == unseen_y
print(f"FOTON {right.mean():.1%}, and {right[sure].mean():.1%} of the {sure.mean():.1%} that it is sure of")

stream = ForwardOnlyClassifier("foton", random_state=0)
for part in np.array_split(np.arange(len(x)), 10):
    stream.partial_fit(x[part], y[part], classes=range(10))
print(f"one pass over a stream {stream.score(unseen_x, unseen_y):.1%}")

x, unseen_x, y, unseen_y = train_test_split(*make_friedman1(2000, noise=1.0, random_state=0), random_state=0)
numbers = ForwardOnlyRegressor("foton", max_iter=30, random_state=0).fit(x, y)
print(f"FOTON {numbers.score(unseen_x, unseen_y):.1%} of the variance of unseen numbers")
