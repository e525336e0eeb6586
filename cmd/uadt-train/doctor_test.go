package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/trainer"
)

// inspected is a vLLM server as far as the doctor looks at it.
type inspected struct {
	length, images, logprobs int
	root, mode               string
	paused                   bool
	missing                  string // a route that it has not
}

func (s inspected) start(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == s.missing:
			http.NotFound(w, r)
		case r.URL.Path == "/version":
			fmt.Fprint(w, `{"version":"0.25.1"}`)
		case r.URL.Path == "/v1/models":
			fmt.Fprintf(w, `{"data":[{"id":"policy","root":%q,"max_model_len":%d}]}`, s.root, s.length)
		case r.URL.Path == "/is_paused":
			fmt.Fprintf(w, `{"is_paused":%v}`, s.paused)
		case r.URL.Path == "/server_info":
			fmt.Fprintf(w, `{"vllm_config":{"model_config":{"logprobs_mode":%q,"max_logprobs":%d,"multimodal_config":{"limit_per_prompt":{"image":{"count":%d}}}}}}`, s.mode, s.logprobs, s.images)
		case r.URL.Path == "/metrics":
			fmt.Fprint(w, "vllm:generation_tokens_total 1\n")
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

func TestDoctorLooksIntoServers(t *testing.T) {
	l := lab(t)
	other := t.TempDir()
	writeFile(t, filepath.Join(other, "tokenizer.json"), []byte("{}"))
	well := inspected{length: 2048, images: 6, logprobs: 21, root: l.path("model"), mode: "processed_logprobs"}
	recipe, _ := writeRecipe(t, l.rlOnly)
	python := answering(t, `echo '{"python":"3.12.1","versions":{"torch":"2.11.0","transformers":"5.10.4"}}'`)
	for name, c := range map[string]struct {
		spoil func(*inspected)
		set   string
		words []string // nil: nothing is wrong
	}{
		"well":                    {func(*inspected) {}, "", nil},
		"says nothing of itself":  {func(s *inspected) { s.missing = "/server_info" }, "", nil},
		"short context":           {func(s *inspected) { s.length = 40 }, "", []string{"context 40 tokens", "--max-model-len of at least 45"}},
		"paused":                  {func(s *inspected) { s.paused = true }, "", []string{"not paused"}},
		"no development routes":   {func(s *inspected) { s.missing = "/is_paused" }, "", []string{"VLLM_SERVER_DEV_MODE=1"}},
		"raw log-probabilities":   {func(s *inspected) { s.mode = "raw_logprobs" }, "", []string{"raw_logprobs", "--logprobs-mode processed_logprobs"}},
		"too few images":          {func(s *inspected) { s.images = 0 }, "", []string{"--limit-mm-per-prompt with at least 1 images"}},
		"too few top candidates":  {func(s *inspected) { s.logprobs = 20 }, "uadt.entropy=topk20", []string{"--max-logprobs of at least 21"}},
		"another tokenizer":       {func(s *inspected) { s.root = other }, "", []string{"tokenizer.json of " + l.path("model")}},
		"no broadcasts":           {func(*inspected) {}, "trainer.weights=nccl trainer.backend=pytorch trainer.python=" + python, []string{"--weight-transfer-config"}},
		"a directory unseen here": {func(s *inspected) { s.root = "/elsewhere/model" }, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			server := well
			c.spoil(&server)
			args := []string{"doctor", "--config", recipe, "--set", "rollout.servers=[" + server.start(t) + "]"}
			for _, set := range strings.Fields(c.set) {
				args = append(args, "--set", set)
			}
			r := invoke(t, args...)
			if c.words == nil {
				r.expect(t, exitDone)
				return
			}
			r.expect(t, exitFailed, "fleet will not do")
			for _, w := range c.words {
				if !strings.Contains(r.stdout, w) {
					t.Errorf("the doctor does not say %q:\n%s", w, r.stdout)
				}
			}
		})
	}
}

func TestDoctorJSON(t *testing.T) {
	l := lab(t)
	recipe, _ := writeRecipe(t, l.rlOnly)
	r := invoke(t, "doctor", "--config", recipe, "--json", "--set", "rollout.servers=[http://"+closedPort(t)+"]")
	r.expect(t, exitUnreachable)
	var failed []string
	for _, line := range strings.Split(strings.TrimSpace(r.stdout), "\n") {
		var f finding
		if err := json.Unmarshal([]byte(line), &f); err != nil || f.Check == "" || f.Found == "" {
			t.Errorf("line %q: %+v, %v", line, f, err)
		}
		if !f.OK {
			failed = append(failed, f.Check)
			if f.Want == "" {
				t.Errorf("%s fails and says not what it wants", line)
			}
		}
	}
	if len(failed) != 1 || failed[0] != "fleet" {
		t.Errorf("failed are %v, want the fleet alone", failed)
	}
}

// answering is an interpreter that answers the probe with text.
func answering(t *testing.T, text string) string {
	t.Helper()
	path := writeFile(t, filepath.Join(t.TempDir(), "python"), []byte("#!/bin/sh\n"+text+"\n"))
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDoctorAsksTheInterpreter(t *testing.T) {
	l := lab(t)
	recipe, _ := writeRecipe(t, l.rlOnly)
	const versions = `"python":"3.12.1","versions":{"torch":"2.11.0+cu130","transformers":"5.17.0"}`
	gpus := func(n int, free int64) string {
		device := fmt.Sprintf(`{"name":"H100","free":%d,"total":85899345920}`, free)
		return "[" + strings.TrimSuffix(strings.Repeat(device+",", n), ",") + "]"
	}
	for name, c := range map[string]struct {
		answer string
		set    string
		words  []string // of stdout
		fails  string   // "": nothing is wrong
	}{
		"a CPU":  {`echo '{` + versions + `,"backends":["gloo"]}'`, "trainer.ranks=2", []string{"no GPU: 2 rank(s)", "available"}, ""},
		"GPUs":   {`echo noise; echo '{` + versions + `,"backends":["gloo","nccl"],"devices":` + gpus(2, 8e10) + `}'`, "trainer.ranks=2", []string{"2 GPUs (H100 with 80 GiB, ", "free on H100", "host memory"}, ""},
		"few":    {`echo '{` + versions + `,"backends":["nccl"],"devices":` + gpus(1, 8e10) + `}'`, "trainer.ranks=2", []string{"a GPU for each of 2 ranks"}, "trainer"},
		"full":   {`echo '{` + versions + `,"devices":` + gpus(1, 512) + `}'`, "trainer.ranks=1", []string{"free on H100: 512 B", "more ranks"}, "memory"},
		"no way": {`echo '{` + versions + `,"backends":[]}'`, "trainer.ranks=2", []string{"gloo for more than one rank"}, "trainer"},
		"old":    {`echo '{"python":"3.12.1","versions":{"torch":"2.9.1","transformers":"6.0.0"}}'`, "trainer.ranks=1", []string{"torch of at least 2.11", "transformers of at least 5.10 and before 6"}, "trainer"},
		"bare":   {`echo '{"python":"3.12.1","missing":{"torch":"ModuleNotFoundError: x"}}'`, "trainer.ranks=1", []string{"torch (ModuleNotFoundError: x)"}, "trainer"},
		"broken": {`echo why it broke >&2; exit 3`, "trainer.ranks=1", []string{"exit status 3", "why it broke"}, "trainer"},
		"noise":  {`echo what`, "trainer.ranks=1", []string{`"what`}, "trainer"},
		"away":   {"", "trainer.python=/nowhere/python", []string{"/nowhere/python"}, "trainer"},
	} {
		t.Run(name, func(t *testing.T) {
			r := invoke(t, "doctor", "--config", recipe, "--set", "trainer.backend=pytorch", "--set", "trainer.python="+answering(t, c.answer), "--set", c.set)
			if c.fails == "" {
				r.expect(t, exitDone)
			} else {
				r.expect(t, exitFailed, c.fails+" will not do")
			}
			for _, w := range c.words {
				if !strings.Contains(r.stdout, w) {
					t.Errorf("the doctor does not say %q:\n%s", w, r.stdout)
				}
			}
		})
	}
}

func TestDoctorAsksForWhatTheRecipeNeeds(t *testing.T) {
	c := configs.Defaults()
	asked := func() string {
		// The probe's argument comes back as the reason why something is missing.
		c.Trainer.Python = answering(t, `printf '{"missing":{"asked":"%s"}}' "$(printf %s "$3" | tr -d '"{}')"`)
		facts, err := newDoctor(c).askInterpreter(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return facts.Missing["asked"]
	}
	if text := asked(); !strings.Contains(text, "torch:torch") || strings.Contains(text, "peft") || strings.Contains(text, "vllm") {
		t.Errorf("weights by directory: %q", text)
	}
	c.Trainer.LoRARank, c.Trainer.Weights = 8, "nccl"
	if text := asked(); !strings.Contains(text, "peft:peft") || !strings.Contains(text, "vllm:vllm") {
		t.Errorf("adapters and broadcasts: %q", text)
	}
}

func TestDoctorDoesNotWaitForAHungInterpreter(t *testing.T) {
	c := configs.Defaults()
	c.Trainer.Python = answering(t, "exec sleep 600")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := newDoctor(c).askInterpreter(ctx); err == nil || !strings.Contains(err.Error(), "no answer within") {
		t.Errorf("error is %v", err)
	}
}

func TestDoctorGivesUpOnAHungCheck(t *testing.T) {
	d := newDoctor(configs.Config{})
	release, written := make(chan struct{}), make(chan struct{})
	found := d.within(context.Background(), "disk", time.Millisecond, func(d *doctor, _ context.Context) []finding {
		<-release // as a file system that is gone
		d.model.tensors, d.rows["late"] = 1, rowFacts{looked: 1}
		close(written)
		return nil
	})
	close(release)
	if len(found) != 1 || found[0].OK || !strings.Contains(found[0].Found, "within 1ms") {
		t.Errorf("%+v", found)
	}
	if <-written; d.model.tensors != 0 || len(d.rows) != 0 {
		t.Error("a check that was given up still tells the others what it found")
	}
	found = d.within(context.Background(), "x", time.Millisecond, func(d *doctor, ctx context.Context) []finding {
		<-ctx.Done()
		d.rows["x"] = rowFacts{looked: 1}
		return []finding{check("x", "", errors.New("why it took long"))}
	})
	if len(found) != 1 || found[0].Found != "why it took long" || d.rows["x"].looked != 1 {
		t.Errorf("a check that ends at its deadline says %+v, rows %v", found, d.rows)
	}
}

func TestExternalRanksNeedAnAddress(t *testing.T) {
	l := lab(t)
	recipe, _ := writeRecipe(t, l.rlOnly)
	external := []string{"doctor", "--config", recipe, "--set", "trainer.backend=pytorch", "--set", "trainer.launch=external"}
	for listen, code := range map[string]int{"": exitFailed, "127.0.0.1:0": exitFailed, "0.0.0.0:4222": exitDone} {
		r := invoke(t, append(external, "--set", "bus.listen="+listen)...)
		r.expect(t, code)
		if !strings.Contains(r.stdout, "the ranks are elsewhere") {
			t.Errorf("nothing is said of their memory:\n%s", r.stdout)
		}
	}
}

// The memory of Qwen2.5-VL-3B on one GPU, next to what was measured: 14.8 GiB
// for weights, gradients and activations of 4,608 tokens, 16.1 GiB for 18,432.
func TestMemoryOfALargeModel(t *testing.T) {
	d := newDoctor(configs.Defaults())
	d.model = modelFacts{
		family: family{kind: nativeFamily}, vocabulary: 151936, imageRows: 4,
		parameters: map[trainer.ModelPart]int64{trainer.Vision: 630e6, trainer.Projector: 40e6, trainer.Language: 3085e6},
		text:       stackSizes{36, 2048, 11008}, vision: stackSizes{32, 1280, 3420},
	}
	rl := configs.Stage{Name: "rl", Kind: trainer.RL}
	d.rows["rl"] = rowFacts{looked: 1, prompt: 512, imageTokens: 256}
	d.c.Rollout.MaxTokens = 512 * 4
	const gib = 1 << 30
	for tokens, measured := range map[int]float64{4608: 14.8, 18432: 16.1} {
		d.c.Trainer.TokenBudget = tokens
		m := d.needs(rl, true)
		if got := float64(m.weights+m.gradients+m.activations) / gib; got < measured || got > 1.5*measured {
			t.Errorf("%d tokens: %.1f GiB are estimated, %.1f were measured", tokens, got, measured)
		}
	}
	one := d.needs(rl, true)
	if want := 3755e6 * int64(2+4+8+2); one.weights+one.master+one.moments+one.gradients != want || one.reference != 0 {
		t.Errorf("state is %s, want %d bytes and no reference", one, want)
	}
	d.c.GRPO.KL, d.c.Trainer.Ranks = "k3", 4
	four := d.needs(rl, true)
	if want := int64(3755e6 * (4 + 8 + 4) / 4); four.weights+four.master+four.moments+four.gradients != want || four.reference != 3755e6*2/4 {
		t.Errorf("state on a rank of four is %s, want %d bytes", four, want)
	}
	align := d.needs(configs.Stage{Name: "align", Kind: trainer.Align, Batch: 64, Frozen: []trainer.ModelPart{trainer.Language}}, false)
	if align.moments != 670e6*8 || align.master != 0 || align.weights != 3755e6*4 {
		t.Errorf("with the language model frozen on a CPU: %s", align)
	}
	d.c.Trainer.LoRARank, d.c.Trainer.LoRATargets = 64, []string{"q_proj"}
	if adapted := d.needs(rl, true); adapted.moments >= four.moments || adapted.reference != 0 {
		t.Errorf("with adapters: %s", adapted)
	}
}

func TestParseMemInfo(t *testing.T) {
	if got, err := parseMemInfo("MemTotal: 9 kB\nMemAvailable:    1024 kB\n"); err != nil || got != 1<<20 {
		t.Errorf("%d, %v", got, err)
	}
	for _, text := range []string{"", "MemTotal: 9 kB", "MemAvailable: x kB", "MemAvailable: -1 kB", "MemAvailable: 99999999999999999999 kB"} {
		if got, err := parseMemInfo(text); !errors.Is(err, errNoMemInfo) {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
}

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		have, want string
		older      bool
	}{{"2.11.0+cpu", "2.11", false}, {"2.9.1", "2.11", true}, {"5.10.4", "5.10", false}, {"6.0.0", "6", false}, {"3", "2.11", false}, {"2.11rc1", "2.11", false}, {"", "1", true}} {
		if got := older(c.have, c.want); got != c.older {
			t.Errorf("%s older than %s: %v", c.have, c.want, got)
		}
	}
}

// What the doctor wants is what the trainer's own package wants.
func TestVersionsAreThoseOfThePackage(t *testing.T) {
	text := string(readFile(t, filepath.Join("..", "..", pytorchFolder, "pyproject.toml")))
	section := text[strings.Index(text, "dependencies = ["):]
	section = section[:strings.Index(section, "]")]
	found := 0
	for _, m := range regexp.MustCompile(`"([a-z-]+)>=([0-9.]+)(?:,<([0-9.]+))?"`).FindAllStringSubmatch(section, -1) {
		if _, asked := trainerModules[m[1]]; !asked {
			t.Errorf("%s is not asked for", m[1])
		}
		if v, checked := trainerVersions[m[1]]; checked {
			found++
			if v.least != m[2] || v.before != m[3] {
				t.Errorf("%s: the doctor wants %s to %s, the package %s to %s", m[1], v.least, v.before, m[2], m[3])
			}
		}
	}
	if found != len(trainerVersions) {
		t.Errorf("%d of %d versions found in %s", found, len(trainerVersions), section)
	}
}
