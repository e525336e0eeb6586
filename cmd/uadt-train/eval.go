package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/internal/blob"
	"github.com/uadt-train/uadt-train/internal/dataset"
	"github.com/uadt-train/uadt-train/internal/evaluate"
	"github.com/uadt-train/uadt-train/internal/serve"
	"github.com/uadt-train/uadt-train/reward"
	"github.com/uadt-train/uadt-train/rollout"
	"github.com/uadt-train/uadt-train/rollout/vllm"
)

// evalFlags are those of the eval command.
type evalFlags struct {
	model         string
	servers       []string
	wait          time.Duration // for servers that start; 0 is not at all
	data          []string
	train         []string
	out           string
	protocol      string
	samples       int
	temperature   float64
	maxTokens     int
	limit         int
	withoutImages bool
	asJSON        bool
}

// protocol is how a family of models is evaluated.
type protocol struct {
	prompts     string
	imagesFirst bool
	maxTokens   int
	maxImages   int
	seed        int64
}

// protocols are the authors' (temperature 0, 8192 tokens, seed 3702, at most
// six images) and that of our micro models.
var protocols = map[string]protocol{
	"ophthareason": {prompts: "ophthareason", maxTokens: 8192, maxImages: 6, seed: 3702},
	"micro":        {prompts: "micro", imagesFirst: true, maxTokens: 96, maxImages: 6, seed: 3702},
}

// evalCommand evaluates a model on files of records.
func (m *Main) evalCommand() *cobra.Command {
	var f evalFlags
	cmd := &cobra.Command{
		Use: "eval --model DIR | --servers URL,... --data FILE...", Short: "evaluate a model on files of records", Args: cobra.NoArgs,
		Long: `eval asks every question of the files and scores the answers twice: strictly, as
in training, and leniently, from wherever an answer can be found. It writes
predictions.jsonl, summary.json and report.html; finished records are not asked
again when it is started once more with the same settings. The authors of
OphthaReason publish no scoring: ours is stated in the report.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return m.eval(cmd.Context(), f) },
	}
	v := cmd.Flags()
	v.StringVar(&f.model, "model", "", "Hugging Face directory, run by the native engine")
	v.StringSliceVar(&f.servers, "servers", nil, "base URLs of servers, in place of --model")
	v.DurationVar(&f.wait, "wait", 0, "wait this long for --servers that still start (default not at all: they must answer at once)")
	v.StringSliceVar(&f.data, "data", nil, "files of records; may be given again")
	v.StringSliceVar(&f.train, "train", nil, "files that the model was trained on: say how many images they share with the evaluation")
	v.StringVar(&f.out, "out", "eval", "directory of the results")
	v.StringVar(&f.protocol, "protocol", "ophthareason", "ophthareason or micro: prompts and limits")
	v.IntVar(&f.samples, "samples", 1, "answers per question, for pass@k")
	v.Float64Var(&f.temperature, "temperature", 0, "sampling temperature; 0 is greedy")
	v.IntVar(&f.maxTokens, "max-tokens", 0, "longest answer (default the protocol's)")
	v.IntVar(&f.limit, "limit", 0, "questions asked of each file, the first ones (default all)")
	v.BoolVar(&f.withoutImages, "without-images", false, "leave the images out: the baseline of a model that does not look")
	v.BoolVar(&f.asJSON, "json", false, "print the summary as JSON")
	cmd.MarkFlagsMutuallyExclusive("model", "servers")
	return cmd
}

func (f evalFlags) check() (protocol, error) {
	var errs []error
	p, known := protocols[f.protocol]
	if !known {
		errs = append(errs, fmt.Errorf("--protocol %s is neither ophthareason nor micro", f.protocol))
	}
	if f.model == "" && len(f.servers) == 0 {
		errs = append(errs, errors.New("needs --model or --servers"))
	}
	if err := configs.CheckServers(f.servers); err != nil {
		errs = append(errs, fmt.Errorf("--servers: %w", err))
	}
	if f.wait < 0 || f.wait > 0 && len(f.servers) == 0 {
		errs = append(errs, fmt.Errorf("--wait %s: want a time that is not negative, and --servers to wait for", f.wait))
	}
	if len(f.data) == 0 {
		errs = append(errs, errors.New("needs --data"))
	}
	if f.samples < 1 || f.samples > 1024 {
		errs = append(errs, fmt.Errorf("--samples %d is outside [1, 1024]", f.samples))
	}
	if f.temperature < 0 || f.temperature > 2 {
		errs = append(errs, fmt.Errorf("--temperature %v is outside [0, 2]", f.temperature))
	}
	if f.samples > 1 && f.temperature == 0 {
		errs = append(errs, fmt.Errorf("--samples %d with --temperature 0: greedy answers are all the same", f.samples))
	}
	if f.limit < 0 {
		errs = append(errs, fmt.Errorf("--limit %d is negative", f.limit))
	}
	if f.maxTokens < 0 {
		errs = append(errs, fmt.Errorf("--max-tokens %d is negative", f.maxTokens))
	}
	if len(errs) > 0 {
		return p, usagef("eval: %w", errors.Join(errs...))
	}
	if f.maxTokens > 0 {
		p.maxTokens = f.maxTokens
	}
	return p, nil
}

func (m *Main) eval(ctx context.Context, f evalFlags) (err error) {
	p, err := f.check()
	if err != nil {
		return err
	}
	images := filepath.Join(f.out, "blobs")
	missing, begun := missingFolders(images), false
	defer func() {
		if !begun { // refused: leave nothing behind
			err = errors.Join(err, removeFolders(missing))
		}
	}()
	var undo closers
	defer func() { err = errors.Join(err, undo.close()) }()
	store, err := blob.Open(images)
	if err != nil {
		return err
	}
	questions, err := f.questions(ctx, store, p)
	if err != nil {
		return err
	}
	shared, err := findOverlap(ctx, store, questions, f.train, func(file string) dataset.Options { return f.options(file, p) })
	if err != nil {
		return err
	}
	scorer, err := reward.New(reward.DefaultOptions())
	if err != nil {
		return err
	}
	servers, err := f.serve(ctx, p, &undo)
	if err != nil {
		return err
	}
	a, err := newAsker(ctx, vllm.Options{Servers: servers, Images: storeImages{store}, Log: m.logger("warn", "text"), StartTimeout: f.wait}, scorer)
	if err != nil {
		return err
	}
	undo.add(a.fleet.Close)
	log, err := openPredictions(f, p, questions)
	if err != nil {
		return err
	}
	undo.add(log.close)
	begun = true
	if err := m.askAll(ctx, a, f, p, log); err != nil {
		return err
	}
	return m.summarise(ctx, f, store, log, shared)
}

// options says how the records of a file are taken under protocol p.
func (f evalFlags) options(file string, p protocol) dataset.Options {
	return setOptions(file, configs.Data{
		Prompts: p.prompts, ImagesFirst: p.imagesFirst, MaxImages: p.maxImages, MaxBadShare: configs.Defaults().Data.MaxBadShare,
	})
}

// evalQuestion is one record of one file.
type evalQuestion struct {
	dataset  string
	question rollout.Question
}

func (f evalFlags) questions(ctx context.Context, store *blob.Store, p protocol) ([]evalQuestion, error) {
	var out []evalQuestion
	seen := map[string]string{}
	for _, file := range f.data {
		questions, err := readQuestions(ctx, store, f.options(file, p), f.limit)
		if err != nil {
			return nil, err
		}
		for _, q := range questions {
			if other, twice := seen[q.ID]; twice {
				return nil, fmt.Errorf("record %s is in %s and in %s", q.ID, other, file)
			}
			seen[q.ID] = file
			if f.withoutImages {
				q = withoutImages(q)
			}
			out = append(out, evalQuestion{dataset: file, question: q})
		}
	}
	return out, nil
}

// withoutImages takes the images out of a question's messages.
func withoutImages(q rollout.Question) rollout.Question {
	messages := make([]rollout.Message, len(q.Messages))
	for i, m := range q.Messages {
		messages[i].Role = m.Role
		for _, part := range m.Parts {
			if part.Image == nil {
				messages[i].Parts = append(messages[i].Parts, part)
			}
		}
	}
	q.Messages = messages
	return q
}

// serve returns the servers to ask, one of our own where --model is given.
func (f evalFlags) serve(ctx context.Context, p protocol, undo *closers) ([]string, error) {
	if len(f.servers) > 0 {
		return f.servers, nil
	}
	server, err := serve.New(serve.Options{Dir: f.model, MaxImages: p.maxImages})
	if err != nil {
		return nil, err
	}
	url, err := listenAndServe(ctx, server, "127.0.0.1:0", undo)
	return []string{url}, err
}

// storeImages gives images straight from a store in this process.
type storeImages struct{ store *blob.Store }

// Image implements vllm.Images.
func (s storeImages) Image(ctx context.Context, digest string) (data []byte, mediaType string, err error) {
	data, err = s.store.Get(ctx, digest)
	if err != nil {
		return nil, "", err
	}
	return data, detectType(data), nil
}

// askAll asks what was not answered before.
func (m *Main) askAll(ctx context.Context, a *asker, f evalFlags, p protocol, log *predictions) error {
	open := log.open()
	questions := make([]rollout.Question, len(open))
	for i, q := range open {
		questions[i] = q.question
	}
	if done := len(log.questions) - len(open); done > 0 {
		fmt.Fprintf(m.Stderr, "%d of %d records are answered already\n", done, len(log.questions))
	}
	sampling := rollout.Sampling{Traces: f.samples, Temperature: f.temperature, TopP: 1, MaxTokens: p.maxTokens}
	seed := func(q rollout.Question) int64 { return rollout.BaseSeed(p.seed, "eval", q.ID, 0, 0) }
	report := newTicker(m, len(open))
	return a.ask(ctx, questions, sampling, seed, func(i int, one answered) error {
		report.tick()
		return log.add(open[i], one)
	})
}

// summarise writes summary.json and report.html and prints the table.
func (m *Main) summarise(ctx context.Context, f evalFlags, store *blob.Store, log *predictions, shared *overlap) error {
	summary := evaluate.Summarise(log.results(), evaluate.Options{Greedy: f.temperature == 0})
	data, err := json.MarshalIndent(struct {
		Settings evalSettings     `json:"settings"`
		Time     string           `json:"time"`
		Summary  evaluate.Summary `json:"summary"`
		Overlap  *overlap         `json:"overlap_with_training,omitempty"`
	}{log.settings, m.Now().UTC().Format(time.RFC3339), summary, shared}, "", "  ")
	if err != nil {
		return fmt.Errorf("summary: %w", err)
	}
	if err := os.WriteFile(filepath.Join(f.out, "summary.json"), append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("summary: %w", err)
	}
	examples, err := log.examples(ctx, store)
	if err != nil {
		return err
	}
	if err := writePage(filepath.Join(f.out, "report.html"), log.settings, summary, examples); err != nil {
		return err
	}
	if f.asJSON {
		_, err := m.Stdout.Write(append(data, '\n'))
		return err
	}
	if shared != nil {
		fmt.Fprintf(m.Stdout, "of %d images, %d are training images and %d more look like one\n", shared.Images, shared.Exact, shared.Near)
	}
	return m.printSummary(f.out, summary)
}
