package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// everyCommand calls visit with each command that does something and the words
// that name it.
func everyCommand(t *testing.T, visit func(cmd *cobra.Command, words []string)) {
	t.Helper()
	m := &Main{Stdout: io.Discard, Stderr: io.Discard}
	w := watchSignals(t.Context(), nil)
	defer w.stop()
	var walk func(cmd *cobra.Command, words []string)
	walk = func(cmd *cobra.Command, words []string) {
		visit(cmd, words)
		for _, child := range cmd.Commands() {
			walk(child, append(words[:len(words):len(words)], child.Name()))
		}
	}
	walk(m.rootCommand(w), nil)
}

// Every command explains itself and every flag of it on stdout, and refuses a
// flag that it does not have before it does anything.
func TestEveryCommandExplainsItself(t *testing.T) {
	guide := string(readFile(t, "../../docs/cli.md"))
	everyCommand(t, func(cmd *cobra.Command, words []string) {
		name := strings.Join(words, " ")
		r := invoke(t, append(words[:len(words):len(words)], "--help")...)
		r.expect(t, exitDone)
		if r.stderr != "" || !strings.Contains(r.stdout, cmd.UseLine()) || cmd.Short == "" {
			t.Errorf("%s --help:\n%s%s", name, r.stdout, r.stderr)
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" || !strings.Contains(r.stdout, "--"+f.Name) {
				t.Errorf("%s --help does not explain --%s", name, f.Name)
			}
		})
		invoke(t, append(words[:len(words):len(words)], "--no-such-flag")...).expect(t, exitUsage, "no-such-flag")
		if listed := strings.Contains(guide, "`uadt-train "+name) || strings.Contains(guide, "`"+name+"`") || strings.Contains(guide, "`"+cmd.Name()+"`"); !listed {
			t.Errorf("docs/cli.md does not list %s", name)
		}
	})
}

// The codes are those of docs/cli.md and of the help, each with one meaning.
func TestExitCodesAreTheDocumentedOnes(t *testing.T) {
	codes := map[string]int{
		"done": exitDone, "failed": exitFailed, "usage or configuration": exitUsage, "stopped, resumable": exitStopped,
		"a fleet, bus or trainer could not be reached": exitUnreachable, "interrupted twice": exitInterrupted,
	}
	help := strings.Join(strings.Fields(invoke(t, "--help").stdout), " ")
	rows := regexp.MustCompile(`(?m)^\| (\d+) \| (.+) \|$`).FindAllStringSubmatch(string(readFile(t, "../../docs/cli.md")), -1)
	if len(rows) != len(codes) {
		t.Errorf("docs/cli.md lists %d codes, want %d", len(rows), len(codes))
	}
	for _, row := range rows {
		if code, known := codes[row[2]]; !known || strconv.Itoa(code) != row[1] {
			t.Errorf("docs/cli.md: %s is %q", row[1], row[2])
		}
		if said := row[1] + " " + strings.ReplaceAll(row[2], ", resum", " and resum"); !strings.Contains(help, said) {
			t.Errorf("--help does not say %q", said)
		}
	}
}

// A command line that cannot be meant ends with code 2, names what is wrong with
// it, prints nothing on stdout and leaves nothing behind, here or where it
// would have written.
func TestCommandLinesThatCannotBeMeant(t *testing.T) {
	l := lab(t)
	recipe, runs := writeRecipe(t, l.rlOnly)
	out := filepath.Join(t.TempDir(), "out")
	model, data := l.path("model"), l.path("data", "train.json")
	before := tree(t, ".")
	for _, c := range []struct {
		args  []string
		words []string
	}{
		{[]string{"--resume"}, []string{"--config names no recipe"}},
		{[]string{"--config", ""}, []string{"--config names no recipe"}}, // a variable that is not set
		{[]string{"--dry-run"}, []string{"--config names no recipe"}},
		{[]string{"--config", recipe, "--seed", "-7"}, []string{"--seed -7 is negative"}},
		{[]string{"--config", recipe, "--seed", "x"}, []string{"--seed", `"x"`}},
		{[]string{"--config", recipe, "more"}, []string{`unknown command "more"`}},
		{[]string{"--config", recipe, "--run", "a/b"}, []string{"name", `"a/b"`}},
		{[]string{"--config", recipe, "--set", "stages.rl.data=phantom:nope:3"}, []string{"phantom:nope:3", `"nope" is none of captions`}},
		{[]string{"--config", recipe, "--dry-run", "--set", "stages.rl.data=phantom:train:x"}, []string{"phantom:train:x", `"x" is not a number of records`}},
		{[]string{"--config", recipe, "--set", "eval.data=phantom:in_domain:4:z"}, []string{`"z" is not a seed`}},
		{[]string{"--config", recipe, "--set", "eval.data=phantom:in_domain"}, []string{"want phantom:SPLIT:COUNT"}},
		{[]string{"config", "shwo"}, []string{`unknown command "shwo"`, "uadt-train config --help"}},
		{[]string{"data", "chekc", data}, []string{`unknown command "chekc"`}},
		{[]string{"model", "inpsect", model}, []string{`unknown command "inpsect"`}},
		{[]string{"reward", "chek"}, []string{`unknown command "chek"`}},
		{[]string{"config", "explain", "a", "b"}, []string{"at most 1 arg"}},
		{[]string{"config", "explain", "rollout"}, []string{"rollout is a section", "rollout.servers"}},
		{[]string{"config", "diff", recipe}, []string{"accepts 2 arg(s), received 1"}},
		{[]string{"config", "diff", recipe, "/gone.yaml"}, []string{"/gone.yaml"}},
		{[]string{"config", "show"}, []string{"model.path", "stages"}},
		{[]string{"data", "check"}, []string{"at least 1 arg"}},
		{[]string{"data", "phantom", "--out", out}, []string{"nothing to make", "--train"}},
		{[]string{"data", "phantom", "--out", out, "--train", "-3"}, []string{"train is -3"}},
		{[]string{"data", "phantom", "--out", out, "--train", "1", "--kinds", "riddle"}, []string{"kinds is riddle"}},
		{[]string{"model", "init", "--out", out, "--hidden", "65"}, []string{"hidden 65 is no multiple of 2 heads"}},
		{[]string{"model", "init", "--out", out, "--layers", "-1", "--mlp", "99999999"}, []string{"layers is -1", "mlp is 99999999"}},
		{[]string{"model", "init", "--out", out, "--vocab", "3", "--dtype", "F8"}, []string{"vocabulary is 3", `"F8"`}},
		{[]string{"model", "compare", model}, []string{"accepts 2 arg(s)"}},
		{[]string{"model", "convert", model, out, "--dtype", "I8"}, []string{"--dtype I8"}},
		{[]string{"model", "convert", model, recipe}, []string{recipe + " exists"}},
		{[]string{"infer", "--model", model, "--question", "q", "--temperature", "-1"}, []string{"--temperature -1 is outside [0, 2]"}},
		{[]string{"infer", "--model", model, "--question", "q", "--temperature", "99", "--max-tokens", "0"}, []string{"--temperature 99", "--max-tokens 0"}},
		{[]string{"infer", "--model", model, "--servers", "http://a", "--question", "q"}, []string{"model", "servers"}},
		{[]string{"infer", "--model", model, "--question", "q", "--prompts", "mine"}, []string{"--prompts mine"}},
		{[]string{"eval", "--model", model, "--data", data, "--out", out, "--limit", "-1"}, []string{"--limit -1"}},
		{[]string{"eval", "--model", model, "--data", data, "--out", out, "--max-tokens", "-5"}, []string{"--max-tokens -5"}},
		{[]string{"eval", "--model", model, "--data", data, "--out", out, "--temperature", "3"}, []string{"--temperature 3 is outside"}},
		{[]string{"serve", "--model", model, "--log-level", "shout"}, []string{"--log-level shout"}},
		{[]string{"worker", "--bus", "nats://a", "--servers", "http://a", "--set", "a=b"}, []string{"--set needs --config"}},
		{[]string{"worker", "--servers", "http://a"}, []string{"needs a bus"}},
		{[]string{"worker", "--bus", "nats://a", "--servers", "a:8000"}, []string{`worker: --servers: "a:8000" is no address`}},
		{[]string{"worker", "--bus", "http://a", "--servers", "http://a"}, []string{`worker: --bus: "http://a" is no address`}},
		{[]string{"eval", "--servers", "http://a,http://a", "--data", data, "--out", out}, []string{"--servers:", "listed before"}},
		{[]string{"infer", "--servers", "http://a/v1", "--question", "q"}, []string{"--servers:", "has the path /v1"}},
		{[]string{"--config", recipe, "--dry-run", "--set", "rollout.servers=[localhost:8000]"}, []string{`--set: rollout.servers: "localhost:8000" is no address`}},
	} {
		t.Run(strings.Join(c.args, " "), func(t *testing.T) {
			r := invoke(t, c.args...)
			r.expect(t, exitUsage, c.words...)
			if r.stdout != "" && !strings.Contains(strings.Join(c.args, " "), "--dry-run") {
				t.Errorf("stdout has %q", r.stdout)
			}
		})
	}
	requireAbsent(t, out)
	requireAbsent(t, runs)
	requireUntouched(t, ".", before)
}

// Commands that only look leave what they look at as it was.
func TestLookingChangesNothing(t *testing.T) {
	l := lab(t)
	fresh := filepath.Join(t.TempDir(), "data") // no other test's index is beside these
	if err := os.CopyFS(fresh, os.DirFS(l.path("data"))); err != nil {
		t.Fatal(err)
	}
	indices, err := filepath.Glob(filepath.Join(fresh, "*.index"))
	for _, index := range indices {
		err = errors.Join(err, os.Remove(index))
	}
	if err != nil {
		t.Fatal(err)
	}
	recipe, runs := writeRecipe(t, func(runs string) string {
		return strings.ReplaceAll(l.rlOnly(runs), l.path("data"), fresh) + "eval: {data: " + filepath.Join(fresh, "in_domain.json") + "}\n"
	})
	answers := writeFile(t, filepath.Join(t.TempDir(), "predictions.jsonl"), []byte(`{"id": "train-0", "text": "<think>x</think><answer>A</answer>"}`+"\n"))
	data, model := filepath.Join(fresh, "train.json"), l.path("model")
	for _, args := range [][]string{
		{"model", "inspect", model}, {"model", "compare", model, model}, {"data", "check", data, filepath.Join(fresh, "sft.json")},
		{"config", "show", "--config", recipe}, {"config", "explain", "uadt.rule"}, {"config", "diff", recipe, recipe},
		{"--config", recipe, "--dry-run"}, {"doctor", "--config", recipe}, {"reward", "check", "--data", data, "--predictions", answers},
	} {
		beforeModel, beforeData, beforeHere := tree(t, model), tree(t, fresh), tree(t, filepath.Dir(recipe))
		invoke(t, args...).expect(t, exitDone)
		requireUntouched(t, model, beforeModel)
		requireUntouched(t, fresh, beforeData)
		requireUntouched(t, filepath.Dir(recipe), beforeHere)
	}
	requireAbsent(t, runs)
}

// pipe is a stdout that takes room bytes and is then closed, as by head.
type pipe struct{ room int }

// errPipe is what a closed pipe says.
var errPipe = errors.New("broken pipe")

// Write implements io.Writer.
func (p *pipe) Write(data []byte) (int, error) {
	if len(data) <= p.room {
		p.room -= len(data)
		return len(data), nil
	}
	n := p.room
	p.room = 0
	return n, errPipe
}

// What could not be printed was not done: a script must not take half a list,
// or none, for a whole one.
func TestOutputThatIsLostIsAFailure(t *testing.T) {
	l := lab(t)
	recipe, _ := writeRecipe(t, l.rlOnly)
	data, model := l.path("data", "train.json"), l.path("model")
	none := writeFile(t, filepath.Join(t.TempDir(), "none.jsonl"), nil)
	indexed := filepath.Join(t.TempDir(), "data")
	if err := os.CopyFS(indexed, os.DirFS(l.path("data"))); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"config", "show", "--config", recipe}, {"config", "explain"}, {"config", "explain", "uadt.rule"}, {"config", "explain", "--json"},
		{"config", "diff", recipe, writeFile(t, filepath.Join(t.TempDir(), "other.yaml"), []byte(strings.Replace(l.rlOnly("x"), "tiny", "other", 1)))},
		{"model", "inspect", model}, {"model", "inspect", "--json", model}, {"model", "compare", model, model},
		{"data", "check", data}, {"data", "check", "--json", data}, {"data", "index", filepath.Join(indexed, "train.json")},
		{"reward", "check", "--data", data, "--predictions", none}, {"reward", "check", "--json", "--data", data, "--predictions", none},
		{"--config", recipe, "--dry-run"}, {"doctor", "--config", recipe}, {"doctor", "--json", "--config", recipe},
		{"infer", "--model", model, "--question", "q", "--max-tokens", "4"},
	} {
		for _, room := range []int{0, 5} {
			if args[0] == "infer" && room > 0 {
				continue // an untrained model may say less
			}
			t.Run(fmt.Sprint(room, args), func(t *testing.T) {
				var stderr strings.Builder
				m := &Main{Stdin: strings.NewReader(""), Stdout: &pipe{room}, Stderr: &stderr, Now: time.Now}
				code := m.Run(context.Background(), args)
				result{code: code, stderr: stderr.String()}.expect(t, exitFailed, errPipe.Error())
			})
		}
	}
}

// What is printed with --json is JSON, one value to each thing that was asked
// for, and nothing else is on stdout.
func TestJSONOutputs(t *testing.T) {
	l := lab(t)
	recipe, _ := writeRecipe(t, l.rlOnly)
	data := l.path("data", "train.json")
	none := writeFile(t, filepath.Join(t.TempDir(), "none.jsonl"), nil)
	for _, c := range []struct {
		args   []string
		values int
		holds  string
	}{
		{[]string{"config", "explain", "uadt.rule", "--json"}, 1, `"Name":"uadt.rule"`},
		{[]string{"config", "explain", "stages.any.steps", "--json"}, 1, `"Class":"horizon"`},
		{[]string{"config", "explain", "--json"}, 1, `"grpo.clip_low"`},
		{[]string{"data", "check", "--json", data, l.path("data", "sft.json")}, 2, `"distinct_images"`},
		{[]string{"model", "inspect", "--json", l.path("model")}, 1, `"digest"`},
		{[]string{"reward", "check", "--json", "--data", data, "--predictions", none}, 1, "train"},
		{[]string{"doctor", "--json", "--config", recipe}, 6, `"check":"model"`},
		{[]string{"eval", "--json", "--model", l.path("model"), "--data", data, "--limit", "2", "--protocol", "micro", "--max-tokens", "4", "--out", filepath.Join(t.TempDir(), "e")}, 1, `"summary"`},
	} {
		r := invoke(t, c.args...)
		r.expect(t, exitDone)
		decoder := json.NewDecoder(strings.NewReader(r.stdout))
		values := 0
		for {
			var value any
			err := decoder.Decode(&value)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%v: %v in\n%s", c.args, err, r.stdout)
			}
			values++
		}
		if values != c.values || !strings.Contains(r.stdout, c.holds) || strings.Contains(r.stdout, "null,null") {
			t.Errorf("%v: %d values, want %d with %s:\n%s", c.args, values, c.values, c.holds, r.stdout)
		}
	}
}
