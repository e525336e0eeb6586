package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/internal/serve"
	"github.com/uadt-train/uadt-train/internal/vision"
	"github.com/uadt-train/uadt-train/rollout"
)

// inferFlags are those of the infer command.
type inferFlags struct {
	model       string
	server      string
	images      []string
	question    string
	kind        string
	prompts     string
	entropy     bool
	temperature float64
	maxTokens   int
	seed        int64
}

// inferCommand asks one question about one or more images.
func (m *Main) inferCommand() *cobra.Command {
	var f inferFlags
	cmd := &cobra.Command{
		Use: "infer --model DIR --image FILE --question TEXT", Short: "ask one question about one or more images", Args: cobra.NoArgs,
		Long: `infer asks a model one question about images of any size and prints the answer
as it comes, reasoning and answer apart. It is for looking at models, not at
patients: nothing it prints is for clinical use.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return m.infer(cmd.Context(), f) },
	}
	v := cmd.Flags()
	v.StringVar(&f.model, "model", "", "Hugging Face directory, run by the native engine")
	v.StringVar(&f.server, "servers", "", "base URL of a server, in place of --model")
	v.StringArrayVar(&f.images, "image", nil, "image file; may be given again")
	v.StringVar(&f.question, "question", "", "the question, options included")
	v.StringVar(&f.kind, "type", "open", "single, multiple, truefalse or open")
	v.StringVar(&f.prompts, "prompts", "ophthareason", "ophthareason or micro: the texts that the model was trained on")
	v.BoolVar(&f.entropy, "entropy", false, "print the entropy of every token, in nats (native engine only)")
	v.Float64Var(&f.temperature, "temperature", 0, "sampling temperature; 0 is greedy")
	v.IntVar(&f.maxTokens, "max-tokens", 512, "longest answer in tokens")
	v.Int64Var(&f.seed, "seed", 0, "seed of the draw")
	cmd.MarkFlagsMutuallyExclusive("model", "servers")
	return cmd
}

func (f inferFlags) check() error {
	var errs []error
	if f.model == "" && f.server == "" {
		errs = append(errs, errors.New("needs --model or --servers"))
	}
	if f.server != "" {
		if err := configs.CheckServers([]string{f.server}); err != nil {
			errs = append(errs, fmt.Errorf("--servers: %w", err))
		}
	}
	if f.question == "" {
		errs = append(errs, errors.New("needs --question"))
	}
	switch rollout.Kind(f.kind) {
	case rollout.SingleChoice, rollout.MultipleChoice, rollout.TrueFalse, rollout.Open:
	default:
		errs = append(errs, fmt.Errorf("--type %s is none of single, multiple, truefalse, open", f.kind))
	}
	if f.prompts != "ophthareason" && f.prompts != "micro" {
		errs = append(errs, fmt.Errorf("--prompts %s is neither ophthareason nor micro", f.prompts))
	}
	if f.temperature < 0 || f.temperature > 2 {
		errs = append(errs, fmt.Errorf("--temperature %v is outside [0, 2]", f.temperature))
	}
	if f.maxTokens < 1 {
		errs = append(errs, fmt.Errorf("--max-tokens %d is less than 1", f.maxTokens))
	}
	if len(errs) == 0 {
		return nil
	}
	return usagef("infer: %w", errors.Join(errs...))
}

func (m *Main) infer(ctx context.Context, f inferFlags) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	body, err := f.request()
	if err != nil {
		return err
	}
	var undo closers
	defer func() { err = errors.Join(err, undo.close()) }()
	url := f.server
	if url == "" {
		server, err := serve.New(serve.Options{Dir: f.model, MaxImages: max(1, len(f.images))})
		if err != nil {
			return err
		}
		if url, err = listenAndServe(ctx, server, "127.0.0.1:0", &undo); err != nil {
			return err
		}
	}
	show := &answerPrinter{out: &printer{w: m.Stdout}}
	tokens, err := streamChat(ctx, url, body, show.text)
	if err != nil {
		return err
	}
	show.end()
	if f.entropy {
		show.entropies(tokens)
	}
	return show.out.err
}

// request builds the body of the chat completion.
func (f inferFlags) request() (map[string]any, error) {
	prompt := promptOf(configs.Data{Prompts: f.prompts, ImagesFirst: f.prompts == "micro"})
	refs := make([]rollout.Image, len(f.images))
	urls := map[string]string{}
	for i, path := range f.images {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("image: %w", err)
		}
		if _, err := vision.Decode(data, 0); err != nil {
			return nil, fmt.Errorf("image %s: %w", path, err)
		}
		kind := detectType(data)
		refs[i] = rollout.Image{Digest: path, MediaType: kind}
		urls[path] = "data:" + kind + ";base64," + base64.StdEncoding.EncodeToString(data)
	}
	var messages []map[string]any
	for _, message := range prompt.Messages(rollout.Kind(f.kind), f.question, refs) {
		var parts []map[string]any
		for _, part := range message.Parts {
			if part.Image != nil {
				parts = append(parts, map[string]any{"type": "image_url", "image_url": map[string]string{"url": urls[part.Image.Digest]}})
			} else {
				parts = append(parts, map[string]any{"type": "text", "text": part.Text})
			}
		}
		messages = append(messages, map[string]any{"role": message.Role, "content": parts})
	}
	body := map[string]any{
		"messages": messages, "stream": true, "temperature": f.temperature, "top_p": 1, "top_k": 0, "min_p": 0,
		"repetition_penalty": 1, "seed": f.seed, "max_completion_tokens": f.maxTokens, "logprobs": true,
	}
	if f.entropy {
		body["vllm_xargs"] = map[string]any{"entropy": 1}
	}
	return body, nil
}
