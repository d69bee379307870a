"""An example for each public name, as the reference shows it and a test runs it."""

from __future__ import annotations

# Each goes on from what `BEGINNING` defines.
BEGINNING = """
import numpy as np
import tfp_bprune as bp

data = bp.load("digits", batch_size=200)
model = bp.build("mlp", data.info, options={"hidden": (16,)})
"""

EXAMPLES = {
    "load": 'data = bp.load("digits", batch_size=32, validation_fraction=0.2)\nprint(data.train_size, data.info.task)',
    "from_arrays": (
        "x, y = np.random.rand(50, 3), np.arange(50) % 2\n"
        "mine = bp.from_arrays((x[:40], y[:40]), (x[40:], y[40:]), batch_size=10)"
    ),
    "dataset": (
        '@bp.dataset("coins")\ndef coins():\n    x, y = np.eye(10, dtype="float32"), np.arange(10) % 2\n'
        '    return (x, y), (x, y)\n\n\ncoins_by_name = bp.load("coins", batch_size=5)'
    ),
    "Info": 'info = bp.Info("table", "classification", (4,), classes=3)\nsmall = bp.build("mlp", info, options={"hidden": (8,)})',
    "info_of": "info = bp.info_of(np.random.rand(50, 3), np.arange(50) % 2)\nprint(info.classes)",
    "build": 'network = bp.build("mlp", data.info, layers="local", prior="ard", options={"hidden": (32, 32)})',
    "bayesianize": (
        "import tf_keras as keras\n\n"
        "plain = keras.Sequential([keras.layers.Flatten(input_shape=(8, 8, 1)), keras.layers.Dense(10)])\n"
        'bayesian = bp.bayesianize(plain, layers="flipout")'
    ),
    "adopt": "ours = bp.adopt(model)  # layers of tfp.layers become those of this package; others stay",
    "inline": (
        "import tf_keras as keras\n\n"
        'base = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), keras.layers.Flatten()], "base")\n'
        "transfer = keras.Sequential([keras.Input((8, 8, 1)), base, keras.layers.Dense(10)])\n"
        "flat = bp.inline(bp.bayesianize(transfer))  # three layers, and no model among them"
    ),
    "strip": "mean = bp.strip(model)  # an ordinary Keras model\nprint(mean.count_params())",
    "save_model": 'bp.save_model(model, "models/digits")',
    "load_model": 'bp.save_model(model, "models/kept")\nagain = bp.load_model("models/kept").model',
    "fit": "rows = bp.fit(model, data, settings=bp.Settings(epochs=1), progress=False)",
    "Settings": "settings = bp.Settings(epochs=50, learning_rate=3e-3, kl_weight=0.1)",
    "compile_model": (
        "compiled = bp.compile_model(model, data, settings=bp.Settings(epochs=1))\n"
        "history = compiled.fit(data.train, validation_data=data.valid, verbose=0)"
    ),
    "recalibrate": (
        'network = bp.build("resnet18", data.info, options={"width": 0.0625})\n'
        'network = bp.recalibrate(network, data.examples("train").x[:32])'
    ),
    "Horovod": (
        "# under `horovodrun -np 2 python train.py`\nimport importlib.util\n\n"
        'if importlib.util.find_spec("horovod"):\n    workers = bp.Horovod()\n    mine = workers.shard(data)'
    ),
    "Strategy": (
        '# all GPUs of this host; of several hosts `bp.Strategy("multiworker")`, first of all\n'
        'workers = bp.Strategy("mirrored")\n'
        "rows = bp.fit(model, data, settings=bp.Settings(epochs=1), distributor=workers, progress=False)"
    ),
    "distribute": (
        "# under `horovodrun`: gradients are averaged over the workers\nimport importlib.util\n\nimport tf_keras as keras\n\n"
        'if importlib.util.find_spec("horovod"):\n    bp.Horovod()\n    optimizer = bp.distribute(keras.optimizers.legacy.Adam(1e-3))'
    ),
    "distributed_callbacks": (
        "# under `horovodrun`: equal beginnings, averaged metrics, a warm-up of the learning rate\nimport importlib.util\n\n"
        'if importlib.util.find_spec("horovod"):\n    mine = bp.Horovod().shard(data)\n'
        "    callbacks = bp.distributed_callbacks(mine, learning_rate=1e-3)"
    ),
    "TensorBoardLogger": (
        "bp.fit(\n    model,\n    data,\n    settings=bp.Settings(epochs=1),\n"
        '    callbacks=[bp.TensorBoardLogger("logs")],\n    progress=False,\n)'
    ),
    "MLflowLogger": (
        "import importlib.util\n\n"
        'if importlib.util.find_spec("mlflow"):  # the extra `mlflow`\n'
        '    logger = bp.MLflowLogger(settings={"hidden": 16}, name="digits")'
    ),
    "log_export": (
        '# with the extra `mlflow`, after bp.export(model, "served/mine")\n'
        'def logged():\n    bp.log_export("served/mine", artifact_path="model")'
    ),
    "predict": 'answer = bp.predict(model, data.examples("test").x[:5], samples=3)\nprint(answer.labels, answer.epistemic)',
    "Prediction": (
        'answer = bp.predict(model, data.examples("test").x[:5], samples=3)\n'
        "print(answer.probabilities.shape, answer.entropy, answer.columns().keys())"
    ),
    "evaluate": 'scores = bp.evaluate(model, data, predictive="mean")\nprint(scores["accuracy"], scores.intervals["accuracy"])',
    "Evaluation": 'scores = bp.evaluate(model, data, predictive="mean")\nprint(scores)',
    "ExpectedCalibrationError": (
        "metric = bp.ExpectedCalibrationError()\nmetric.update_state([0, 1], [[0.9, 0.1], [0.2, 0.8]])\nprint(float(metric.result()))"
    ),
    "BrierScore": "metric = bp.BrierScore()\nmetric.update_state([0, 1], [[0.9, 0.1], [0.2, 0.8]])\nprint(float(metric.result()))",
    "NegativeLogLikelihood": (
        "metric = bp.NegativeLogLikelihood()\nmetric.update_state([0, 1], [[0.9, 0.1], [0.2, 0.8]])\nprint(float(metric.result()))"
    ),
    "prune": (
        "pruned, report = bp.prune(model, sparsity=0.9)\n"
        'by_unit, _ = bp.prune(model, sparsity=0.5, granularity="unit", scope="layer")\nprint(report.sparsity)'
    ),
    "GradualPruning": (
        "bp.fit(model, data, settings=bp.Settings(epochs=2), callbacks=[bp.GradualPruning(0.5)], progress=False)"
    ),
    "Shrink": (
        'network = bp.build("mlp", data.info, prior="ard", options={"hidden": (16,)})\n'
        "bp.fit(network, data, settings=bp.Settings(epochs=1), callbacks=[bp.Shrink()], progress=False)"
    ),
    "criterion": (
        '@bp.criterion("widest")\ndef widest(weights):\n    return -weights.scale  # the widest posteriors go first\n\n\n'
        'pruned, _ = bp.prune(model, sparsity=0.5, criterion="widest")'
    ),
    "export": 'manifest = bp.export(model, "served/digits", predictive="moments")\nprint(manifest["bytes"])',
    "reload": (
        'bp.export(model, "served/reloaded")\n[found] = bp.reload("served/reloaded", data.examples("test").x[:8], batches=[1], rounds=3)\n'
        'print(found.outputs["probabilities"].shape, found.latency_ms)'
    ),
    "Form": "from tfp_bprune.exports.forms import FORMS\n\nprint([(form.name, form.file) for form in FORMS.values()])",
    "register_form": 'from tfp_bprune.exports.forms import FORMS\n\nbp.register_form(FORMS["onnx"])  # one of yours, see `Form`',
    "sweep": (
        'result = bp.sweep(model, data.examples("valid"), "swept", sparsities=(0.0, 0.9), samples=2)\n'
        'print([(row["sparsity"], row["accuracy"], row["bytes"]) for row in result["rows"]])'
    ),
    "search": (
        "from tfp_bprune.searching import Settings\n\n"
        'held_out = bp.load("digits", validation_fraction=0.3)\n'
        "settings = Settings(bp.Budget(max_accuracy_drop=0.2), trials=20)\n"
        'found = bp.search(model, held_out, "searched", settings=settings)\nprint(len(found.rows))'
    ),
    "Budget": "budget = bp.Budget(max_accuracy_drop=0.005, max_ece_increase=0.02, level=0.95)",
    "tune": 'result = bp.tune("mlp", data, "tuned", method="random", trials=1, epochs=1, hidden=(8,))\nprint(result["best"])',
    "hyper_model": (
        "from tfp_bprune.tuning import keras_tuner\n\n"
        'kt = keras_tuner()\ntuner = kt.RandomSearch(\n    bp.hyper_model("mlp", data, epochs=1, hidden=(8,)),\n'
        '    kt.Objective("val_nll", "min"),\n    max_trials=1,\n    directory="tuner",\n)'
    ),
    "Prior": (
        'import tensorflow as tf\n\n\nclass Laplace(bp.Prior):\n    kind = "laplace"\n\n    def get_config(self):\n'
        '        return {"kind": self.kind}\n\n    def log_density(self, w, variables):\n        return -tf.abs(w) - np.log(2)'
    ),
    "register_prior": (
        'import tensorflow as tf\n\n\n@bp.register_prior\nclass Logistic(bp.Prior):\n    kind = "logistic"\n\n    def get_config(self):\n'
        '        return {"kind": self.kind}\n\n    def log_density(self, w, variables):\n        return -w - 2 * tf.nn.softplus(-w)\n\n\n'
        'network = bp.build("mlp", data.info, prior="logistic", options={"hidden": (8,)})'
    ),
    "NormalPrior": 'network = bp.build("mlp", data.info, prior=bp.NormalPrior(scale=0.1), options={"hidden": (8,)})',
    "ScaleMixturePrior": "prior = bp.ScaleMixturePrior(pi=0.5, scale1=1.0, scale2=np.exp(-6))",
    "CentredPrior": "prior = bp.CentredPrior(bp.NormalPrior(0.1))  # around trained weights, as bayesianize(moped=...) has it",
    "ARDPrior": 'network = bp.build("mlp", data.info, prior=bp.ARDPrior(groups="both"), options={"hidden": (8,)})',
    "NormalJeffreysPrior": 'network = bp.build("mlp", data.info, prior=bp.NormalJeffreysPrior(), options={"hidden": (8,)})',
    "HorseshoePrior": 'network = bp.build("mlp", data.info, prior=bp.HorseshoePrior(), options={"hidden": (8,)})',
    "Posterior": '[layer] = [one for one in model.layers if one.name == "logits"]\nprint(isinstance(layer.kernel_posterior, bp.Posterior))',
    "register_posterior": "from tfp_bprune.layers.distribution import POSTERIORS\n\nprint(list(POSTERIORS))  # register_posterior adds one of yours",
    "BpruneError": "try:\n    bp.prune(model, sparsity=90)\nexcept bp.BpruneError as error:\n    print(error)  # one line: expected, got, what to do",
}
