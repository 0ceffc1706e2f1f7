"""Which of the benchmark's broken runs show a symptom: by code, the run's name."""

SHOWN = {
    "RN209": "saturated tanh",
    "RN210": "detached body",
    "RN211": "constant initialisation",
    "RN212": "rate low, Adam",
    "RN213": "rate high, Adam",
    "RN214": "BatchNorm, never updated",
    "RN215": "overfitting, regression",
    "RN216": "decay high",
    "RN301": "pixels of 255",
    "RN302": "binary labels 1 and 2",
    "RN303": "softmax twice",
}
