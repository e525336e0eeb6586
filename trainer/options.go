package trainer

// Loss is a token loss by name; formulas are at [TokenLoss].
type Loss string

// The token losses.
const (
	PPO   Loss = "ppo"
	GSPO  Loss = "gspo"
	CISPO Loss = "cispo"
	NLL   Loss = "nll"
)

// KLKind is an estimator of KL(policy || reference) by name.
type KLKind string

// The estimators: k1 = lp-ref, k2 = (lp-ref)^2/2, k3 = exp(d)-d-1 with d = ref-lp.
const (
	KLOff KLKind = ""
	K1    KLKind = "k1"
	K2    KLKind = "k2"
	K3    KLKind = "k3"
)

// KL says whether and how the distance to the reference enters the loss.
type KL struct {
	Kind  KLKind  // KLOff (default) needs no reference
	Coef  float64 // weight of the term in the loss
	Clamp bool    // clamp d to +-20 and the estimate to +-10, as verl does
}

// Aggregation turns token losses into one number.
type Aggregation string

// The aggregations; formulas and denominators are at [Denominators].
const (
	TokenMean           Aggregation = "token_mean"
	SeqMeanTokenSum     Aggregation = "seq_mean_token_sum"
	SeqMeanTokenMean    Aggregation = "seq_mean_token_mean"
	SeqMeanTokenSumNorm Aggregation = "seq_mean_token_sum_norm"
)

// Correction multiplies advantages by w = exp(old - rollout), detached, for
// engines that sample otherwise than the trainer scores.
type Correction struct {
	Level string  // "" (off, statistics only), "token" or "sequence"
	Mode  string  // "truncate" at Upper, or "mask" outside [Lower, Upper]
	Lower float64 // only for mask; 0 is no lower bound
	Upper float64 // default 2
}

// Covariance is Clip-Cov or KL-Cov (arXiv 2505.22617): the tokens whose
// centred log-probability and advantage have the largest covariance are
// detached (clip) or penalised (kl).
type Covariance struct {
	Kind  string  // "" (off), "clip" or "kl"
	Share float64 // share of tokens chosen
	Coef  float64 // weight of the KL penalty; only for kl
}

// StepOptions is everything about one optimizer update that is not data. A
// backend applies it as it stands and remembers nothing of it.
type StepOptions struct {
	Loss         Loss
	ClipLow      float64 // ratio is clipped to [1-ClipLow, 1+ClipHigh]
	ClipHigh     float64
	DualClip     float64 // c of dual clip for A < 0; 0 is none
	KL           KL
	Aggregation  Aggregation
	Denominators Denominators // of the whole update, over all ranks
	Correction   Correction
	Covariance   Covariance
	EntropyBonus float64 // coefficient of mean token entropy, added to the objective
	// EntropyQuantile keeps the gradient of the share of tokens with the highest
	// entropy (arXiv 2506.01939); 0 or 1 keeps all.
	EntropyQuantile float64
	LearningRate    float64
	GradClip        float64 // global gradient norm; 0 is no clipping
	Temperature     float64 // logits are divided by it before log-softmax
	Banned          []int32 // ids masked before log-softmax, as in sampling
}

// Optimizer holds the constants of AdamW with decoupled weight decay.
type Optimizer struct {
	Beta1       float64 // default 0.9
	Beta2       float64 // default 0.999
	Epsilon     float64 // default 1e-8
	WeightDecay float64 // default 0; never applied to biases and norm weights
}
