"""The tags of all curves in TensorBoard, and the description that it displays beside each curve.

TensorBoard sorts cards by tag: `fit/` comes first, unless a run is in fp16 and has `amp/`.
"""

DESCRIPTIONS = {
    "amp/scale": "Factor by which the loss is multiplied in fp16, so that small gradients stay"
    " above zero. It halves whenever a step overflows.",
    "fit/train_loss": "Training loss, in nats per token: the mean since the last point, with"
    " dropout on. The same as train/loss.",
    "fit/valid_loss": "Validation loss, in nats per token, without dropout. The same as"
    " valid/loss.",
    "fit/valid_ppl": "Validation perplexity per token: exp of the loss. The same as"
    " valid/token_ppl.",
    "fit/best_ppl": "The lowest validation perplexity per token so far: that of `model/`.",
    "norm/effective_rate": "Length of one step's update of this layer's matrices over that of the"
    " matrices: the learning rate that matters for weights whose scale does not.",
    "norm/l2_share": "Share of the L2 term in Adam's first moment of this layer, from 0 to 1: near"
    " 1 the penalty has drowned out the loss.",
    "norm/update": "Length of one step's update of this layer's matrices.",
    "norm/weight": "Length of this layer's matrices, all their entries taken as one vector.",
    "perf/tokens_per_s": "Training speed, in tokens per second over all processes; validations"
    " are not counted.",
    "sample/continuation": "How the model continues the first words of the validation text, drawn"
    " at temperature 0.8 with the same seed every time.",
    "sched/cycle": "Cycle of the learning rate, counted from 0; each begins with a warm restart.",
    "sched/lr": "Learning rate.",
    "sched/mode": "Kind of state gradient at the windows' ends: 0 real (truncated, nothing is"
    " injected), 1 synthetic.",
    "sg/beta": "The best factor for the injected gradients, judged by the effects on the weights of"
    " these and of the exact future. 1: they are right as they are; 0: they do nothing useful;"
    " below 0: they do harm.",
    "sg/cosine": "Cosine between the predicted and the observed state gradient, on probe windows.",
    "sg/factor": "Factor by which predictions are multiplied before they are injected, from 0 to"
    " 1.",
    "sg/norm_ratio": "Length of the predicted state gradient over that of the observed one.",
    "sg/parameter_cosine": "Cosine between the effects of the injected gradients and of the exact"
    " future on the weights.",
    "sg/relative_mse": "Squared error of the predicted state gradient over the squared length of"
    " the observed one. 1: no better than predicting zero.",
    "train/grad_norm": "Norm of the last step's gradient before clipping.",
    "train/loss": "Training loss, in nats per token: the mean since the last point, with dropout"
    " on.",
    "train/skipped_steps": "Steps so far that changed nothing, because their loss or gradient was"
    " not finite.",
    "valid/bits_per_byte": "Validation loss in bits per UTF-8 byte of the text: comparable across"
    " tokenizers.",
    "valid/loss": "Validation loss, in nats per token, without dropout.",
    "valid/token_ppl": "Validation perplexity per token: exp of the loss.",
}


def description(tag: str) -> str:
    """Returns the description of a curve; those of all layers, `norm/weight/LAYER`, share one."""
    return DESCRIPTIONS[tag if tag in DESCRIPTIONS else tag.rpartition("/")[0]]
