package configs

import (
	"time"

	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/trainer"
	"github.com/uadt-train/uadt-train/uadt"
)

// Config is a run as its recipe describes it. The tags of the fields are the
// reference that `uadt-train config explain` prints: key, class (identity: a
// difference refuses to resume; placement: may change; horizon: may be
// extended), unit, range and help.
type Config struct {
	Name       string     `key:"name" class:"placement" range:"letters, digits, - and _" help:"name of the run; its directory is runs_dir/name"`
	Seed       int64      `key:"seed" range:">= 0" help:"base of every random stream: order of questions, sampling, placebo"`
	RunsDir    string     `key:"runs_dir" class:"placement" help:"folder that holds the run directories"`
	Model      Model      `key:"model"`
	Data       Data       `key:"data"`
	Stages     []Stage    `key:"stages"`
	Rollout    Rollout    `key:"rollout"`
	Reward     Reward     `key:"reward"`
	UADT       UADT       `key:"uadt"`
	GRPO       GRPO       `key:"grpo"`
	Trainer    Trainer    `key:"trainer"`
	Bus        Bus        `key:"bus"`
	Eval       Eval       `key:"eval"`
	Checkpoint Checkpoint `key:"checkpoint"`
	Log        Log        `key:"log"`
}

// Model is the section model.
type Model struct {
	Path      string `key:"path" class:"identity" help:"Hugging Face directory of the policy to start from"`
	MaxPixels int    `key:"max_pixels" unit:"pixels" range:">= 3136" help:"images larger than this are shrunk; the one owner of the pixel budget, sent to servers and trainers"`
}

// Data is the section data.
type Data struct {
	Prompts     string  `key:"prompts" range:"ophthareason or micro" help:"which system text and question suffixes the policy is shown; ophthareason are those of the released models, byte for byte"`
	ImagesFirst bool    `key:"images_first" help:"images before the text of the user's message (VLM-R1) instead of after it (the authors' evaluation)"`
	MaxImages   int     `key:"max_images" unit:"images" range:">= 1" help:"most images of a record; the first ones are used, the others counted"`
	MaxBadShare float64 `key:"max_bad_share" range:"0 to 1" help:"share of records that may be unreadable before a run refuses to start"`
}

// Stage is one element of stages.
type Stage struct {
	Name         string              `key:"name" range:"unique" help:"name of the stage"`
	Kind         trainer.StageKind   `key:"kind" range:"align, sft or rl" help:"align: image and caption; sft: reasoning traces; rl: GRPO and UADT"`
	Data         string              `key:"data" class:"identity" help:"file of records to train on, or phantom:SPLIT:COUNT[:SEED], made when it is first needed"`
	Steps        int                 `key:"steps" class:"horizon" unit:"steps" range:">= 1" help:"rollout batches (rl) or optimizer updates (align, sft) of the stage"`
	Batch        int                 `key:"batch" unit:"records" range:">= 1" help:"records of one update; align and sft only (rl: rollout.questions_per_step)"`
	LearningRate float64             `key:"learning_rate" range:"0 < r < 1" help:"peak learning rate of AdamW"`
	Warmup       int                 `key:"warmup" unit:"steps" range:">= 0" help:"updates over which the learning rate rises from 0"`
	Decay        string              `key:"decay" range:"constant, linear or cosine" help:"how the learning rate falls to 0 by the end of the stage"`
	WeightDecay  float64             `key:"weight_decay" range:"0 to 1" help:"decoupled weight decay; biases and norm weights are left out"`
	Frozen       []trainer.ModelPart `key:"frozen" range:"vision, projector, language" help:"parts of the model that keep their weights"`
}

// Rollout is the section rollout.
type Rollout struct {
	Servers          []string      `key:"servers" class:"placement" help:"base URLs of vLLM servers, such as http://host:8000, without a path, each once; empty starts the native engine in the process, on loopback"`
	Workers          int           `key:"workers" class:"placement" range:">= 0" help:"rollout workers started in the process; 0 expects 'uadt-train worker' elsewhere"`
	GroupSize        int           `key:"group_size" unit:"traces" range:"2 to 1024" help:"G, traces sampled of each question"`
	QuestionsPerStep int           `key:"questions_per_step" unit:"questions" range:">= 1" help:"Q, groups of a rollout batch"`
	Temperature      float64       `key:"temperature" range:"0 < t <= 2" help:"sampling temperature; scores and entropies use it too"`
	TopP             float64       `key:"top_p" range:"0 < p <= 1" help:"nucleus sampling; rl refuses anything but 1 unless allow_filtered"`
	TopK             int           `key:"top_k" range:">= 0" help:"0 is off; rl refuses anything else unless allow_filtered"`
	AllowFiltered    bool          `key:"allow_filtered" help:"accept sampling from a filtered distribution, which the trainer cannot recompute; forbids surprisal, topk and correction"`
	MaxTokens        int           `key:"max_tokens" unit:"tokens" range:">= 1" help:"longest response, end of sequence included"`
	MaxStaleness     int           `key:"max_staleness" unit:"policy versions" range:">= 0" help:"how far the sampling policy may lag behind the trained one; 0 is synchronous"`
	MaxRefill        int           `key:"max_refill" unit:"questions" range:">= 0" help:"questions that may replace dropped groups of one step"`
	Dynamic          bool          `key:"dynamic_sampling" help:"drop groups whose rewards are all equal and sample other questions instead"`
	Concurrency      int           `key:"concurrency" class:"placement" unit:"requests" range:">= 1" help:"requests that are open at one server at a time"`
	Timeout          time.Duration `key:"timeout" class:"placement" range:"> 0" help:"deadline of a job, from its admission"`
}

// Reward is the section reward.
type Reward struct {
	Format     float64          `key:"format" range:"0 to 100" help:"weight of the format part"`
	Answer     float64          `key:"answer" range:"0 to 100" help:"weight of the answer part"`
	Multi      reward.MultiMode `key:"multi" range:"exact or f1" help:"what a multiple-choice answer is worth"`
	Open       reward.OpenMode  `key:"open" range:"match, f1 or judge" help:"what an open answer is worth"`
	JudgeURL   string           `key:"judge_url" class:"placement" help:"base URL of the OpenAI-compatible endpoint that judges open answers, such as http://host:8000/v1"`
	JudgeModel string           `key:"judge_model" help:"model name sent to the judge"`
	Timeout    time.Duration    `key:"timeout" class:"placement" range:"> 0" help:"longest time for scoring one trace"`
}

// UADT is the section uadt. The formula is a reconstruction: the paper's is
// unpublished, and every default here is ours.
type UADT struct {
	Rule      string         `key:"rule" range:"none, c1, c2, c3 or c4" help:"shaping rule; c1 is sign-aware, c4 its inverse for control" source:"reconstruction, not the paper's"`
	Gamma     uadt.Gamma     `key:"gamma" range:"0 to 1, or half_life: STEPS or SHARE%" help:"memory of the running threshold tau" source:"the name is the paper's, the value is ours"`
	Lambda    uadt.Schedule  `key:"lambda" range:">= 0, or a schedule {shape, from, to, over, warmup}" help:"strength of shaping" source:"the name is the paper's, the value is ours"`
	Gain      uadt.Schedule  `key:"gain" range:">= 0, or a schedule" help:"k of omega = tanh(k*u)" source:"ours"`
	Norm      uadt.Norm      `key:"norm" range:"diff, rel or z" help:"how the distance of H from tau is measured" source:"ours"`
	Entropy   uadt.Estimator `key:"entropy" range:"exact, topkN or surprisal" help:"estimator of token entropy"`
	Recenter  bool           `key:"recenter" help:"subtract the mean of the shaped advantages"`
	Rescale   bool           `key:"rescale" help:"keep the sum of absolute advantages"`
	Kappa     float64        `key:"kappa" range:">= 0" help:"c3 adds at most |A|/kappa; 0 is unlimited"`
	Floor     float64        `key:"floor" unit:"nats" range:"> 0" help:"least denominator of rel and z"`
	Span      uadt.Span      `key:"span" range:"response or think" help:"tokens that H covers"`
	Level     uadt.Level     `key:"level" range:"trace or group" help:"whose uncertainty H is"`
	Truncated uadt.Truncated `key:"truncated" range:"include or exclude" help:"whether truncated traces are shaped and counted"`
	Placebo   uadt.Placebo   `key:"placebo" range:"off, within or mean" help:"control: omega shuffled within groups, or replaced by the group's mean"`
	Update    uadt.Update    `key:"update" range:"after or before" help:"whether tau takes in a batch after or before it is shaped"`
	Carry     bool           `key:"carry" help:"keep tau from one rl stage to the next"`
}

// GRPO is the section grpo.
type GRPO struct {
	Advantage         uadt.Baseline       `key:"advantage" range:"grpo, dr_grpo or rloo" help:"group baseline"`
	Eps               float64             `key:"eps" range:">= 0" help:"added to the standard deviation of a group's rewards"`
	MinStd            float64             `key:"min_std" range:"> 0" help:"standard deviation below which a group's advantages are 0"`
	Loss              trainer.Loss        `key:"loss" range:"ppo, gspo or cispo" help:"token loss"`
	ClipLow           float64             `key:"clip_low" range:"0 to 1" help:"the ratio is clipped at 1 - clip_low"`
	ClipHigh          float64             `key:"clip_high" range:"0 to 100" help:"the ratio is clipped at 1 + clip_high"`
	DualClip          float64             `key:"dual_clip" range:"0 or > 1" help:"bound of the loss for negative advantages; 0 is off"`
	KL                string              `key:"kl" range:"off, k1, k2 or k3" help:"estimator of the distance to the reference, the policy at the start of the stage"`
	KLCoef            float64             `key:"kl_coef" range:"0 to 100" help:"weight of the KL term"`
	KLIn              string              `key:"kl_in" range:"loss or reward" help:"where the KL term enters; k1 is refused in the loss"`
	KLClamp           bool                `key:"kl_clamp" help:"clamp the log-ratio to +-20 and the estimate to +-10, as verl does"`
	Aggregation       trainer.Aggregation `key:"aggregation" range:"token_mean, seq_mean_token_sum, seq_mean_token_mean or seq_mean_token_sum_norm" help:"how token losses become one number"`
	UpdatesPerRollout int                 `key:"updates_per_rollout" unit:"updates" range:"1 to rollout.questions_per_step" help:"optimizer updates on minibatches of whole groups per rollout batch"`
	Truncated         string              `key:"truncated" range:"keep or mask" help:"whether truncated traces are trained"`
	Denominator       string              `key:"denominator" range:"all or informative" help:"which traces the loss is averaged over"`
	Correction        string              `key:"correction" range:"off, token or sequence" help:"truncated importance weights between the engine that sampled and the one that trains"`
	EntropyBonus      float64             `key:"entropy_bonus" range:"0 to 100" help:"weight of mean token entropy in the objective; a control for uadt"`
	EntropyQuantile   float64             `key:"entropy_quantile" range:"0 to 1" help:"keep the gradient of this share of tokens with the highest entropy; 0 keeps all"`
	GradClip          float64             `key:"grad_clip" range:"0 to 1e6" help:"largest global gradient norm; 0 is off"`
}

// Trainer is the section trainer.
type Trainer struct {
	Backend     string        `key:"backend" range:"gorgonia or pytorch" help:"gorgonia trains in the process; pytorch drives processes on GPUs"`
	Ranks       int           `key:"ranks" class:"placement" range:">= 1" help:"trainer processes of a full set; 1 for gorgonia"`
	Launch      string        `key:"launch" class:"placement" range:"local or external" help:"whether uadt-train starts the PyTorch processes itself"`
	Sharding    string        `key:"sharding" class:"placement" range:"auto, none or full" help:"whether locally launched ranks cut weights, gradients and optimizer state between them; auto: on GPUs"`
	Python      string        `key:"python" class:"placement" help:"Python interpreter of locally launched ranks"`
	TokenBudget int           `key:"token_budget" class:"placement" unit:"tokens" range:">= 1" help:"most tokens of one micro-batch, which bounds memory"`
	Beta2       float64       `key:"beta2" range:"0 < b < 1" help:"second moment decay of AdamW; the first is 0.9"`
	MaxBadSteps int           `key:"max_bad_steps" range:">= 1" help:"updates in a row with a loss or gradient that is not finite before the run stops"`
	Timeout     time.Duration `key:"timeout" class:"placement" range:"> 0" help:"longest time for one trainer command"`
	Weights     string        `key:"weights" class:"placement" range:"directory, nccl or lora" help:"how new weights reach the servers: a checkpoint directory, a broadcast (vLLM with --weight-transfer-config), or the adapter alone (vLLM with --enable-lora on model.path)"`
	LoRARank    int           `key:"lora_rank" range:">= 0" help:"train adapters of this rank instead of weights, pytorch only; 0 is off" source:"LoRA, arXiv:2106.09685; VLM-R1 has 64"`
	LoRAAlpha   float64       `key:"lora_alpha" range:"0 to 1e6" help:"adapters are scaled by alpha over rank; 0 is twice the rank" source:"VLM-R1 has 128 at rank 64"`
	LoRATargets []string      `key:"lora_targets" range:"q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" help:"projections of the language model that get an adapter"`
}

// Bus is the section bus.
type Bus struct {
	URL         string `key:"url" class:"placement" help:"NATS server, such as nats://host:4222, or several with commas; empty runs one with JetStream in the process"`
	Listen      string `key:"listen" class:"placement" help:"address on which the embedded server takes other processes; empty takes none"`
	Credentials string `key:"credentials" class:"placement" help:"file with the nkey seed to connect with"`
}

// Eval is the section eval.
type Eval struct {
	Data      string `key:"data" help:"file of held-out records, or phantom:SPLIT:COUNT[:SEED]; empty evaluates nothing"`
	Every     int    `key:"every" class:"identity" unit:"steps" range:">= 0" help:"evaluate each this many rl steps; 0 only at the ends of stages"`
	Questions int    `key:"questions" unit:"questions" range:">= 0" help:"held-out questions asked, the first ones; 0 asks all"`
	Traces    int    `key:"traces" unit:"traces" range:">= 1" help:"sampled answers per held-out question, for accuracy and pass@k"`
}

// Checkpoint is the section checkpoint.
type Checkpoint struct {
	Every int `key:"every" class:"horizon" unit:"steps" range:">= 1" help:"steps between checkpoints; the end of a stage is always one"`
	Keep  int `key:"keep" class:"placement" range:">= 1" help:"latest checkpoints that are kept"`
}

// Log is the section log.
type Log struct {
	Level      string `key:"level" class:"placement" range:"debug, info, warn or error" help:"least level of a log line"`
	Format     string `key:"format" class:"placement" range:"text or json" help:"form of log lines on stderr"`
	Prometheus string `key:"prometheus" class:"placement" help:"address that serves /metrics; empty serves none"`
}
