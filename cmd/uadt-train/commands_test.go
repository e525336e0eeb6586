package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// retina is a real photograph of a normal eye, CC0; see SOURCE.md beside it.
const retina = "../../testdata/retina/retina.jpg"

func TestInferWithTwoImagesOfDifferentSize(t *testing.T) {
	l := lab(t)
	phantoms, err := filepath.Glob(l.path("data", "images", "*.png"))
	if err != nil || len(phantoms) == 0 {
		t.Fatalf("the shared data have no images (%v)", err)
	}
	trained := filepath.Join(lastCheckpoint(t, l.unbroken(t)), "policy")
	args := []string{
		"infer", "--model", trained, "--image", retina, "--image", phantoms[0], "--prompts", "micro", "--type", "truefalse",
		"--question", "Three or more quadrants have lesions. A. True B. False", "--max-tokens", "48", "--entropy",
	}
	r := invoke(t, args...)
	r.expect(t, exitDone)
	for _, words := range []string{"reasoning: ", "answer: ", "H, nats"} {
		if !strings.Contains(r.stdout, words) {
			t.Errorf("the answer has no %q:\n%s", words, r.stdout)
		}
	}
	if again := invoke(t, args...); again.stdout != r.stdout {
		t.Errorf("a greedy answer changed:\n%s\nthen\n%s", r.stdout, again.stdout)
	}
}

func TestConfigShowIsAConfiguration(t *testing.T) {
	l := lab(t)
	recipe, _ := writeRecipe(t, l.recipe)
	shown := invoke(t, "config", "show", "--config", recipe, "--set", "uadt.rule=c3")
	shown.expect(t, exitDone)
	again := writeFile(t, filepath.Join(t.TempDir(), "shown.yaml"), []byte(shown.stdout))
	diff := invoke(t, "config", "diff", recipe, again)
	diff.expect(t, exitDone)
	if got := strings.Fields(diff.stdout); len(got) != 5 || got[0] != "uadt.rule" || got[4] != "c3" {
		t.Errorf("what is shown differs from its source in more than uadt.rule:\n%s", diff.stdout)
	}
}

func TestConfigFromTheEnvironment(t *testing.T) {
	l := lab(t)
	recipe, _ := writeRecipe(t, l.recipe)
	r := invokeWith(t, &Main{Env: []string{"UADT_ROLLOUT_GROUP_SIZE=6"}}, "config", "show", "--config", recipe)
	r.expect(t, exitDone)
	if !strings.Contains(r.stdout, "group_size: 6 # env UADT_ROLLOUT_GROUP_SIZE") {
		t.Errorf("the environment is not over the file:\n%s", r.stdout)
	}
}

func TestConfigExplain(t *testing.T) {
	r := invoke(t, "config", "explain", "uadt.lambda")
	r.expect(t, exitDone)
	for _, words := range []string{"uadt.lambda", "default", "identity", "the name is the paper's"} {
		if !strings.Contains(r.stdout, words) {
			t.Errorf("the explanation does not say %q:\n%s", words, r.stdout)
		}
	}
	all := invoke(t, "config", "explain", "--json")
	all.expect(t, exitDone)
	var keys []struct{ Name, Help string }
	if err := json.Unmarshal([]byte(all.stdout), &keys); err != nil {
		t.Fatal(err)
	}
	if len(keys) > 100 {
		t.Errorf("%d keys, want at most 100", len(keys))
	}
	for _, k := range keys {
		if k.Help == "" {
			t.Errorf("%s is not explained", k.Name)
		}
	}
}

func TestModelInspectAndCompare(t *testing.T) {
	l := lab(t)
	policy := filepath.Join(lastCheckpoint(t, l.unbroken(t)), "policy")
	r := invoke(t, "model", "inspect", "--json", policy)
	r.expect(t, exitDone)
	var inspected struct {
		Digest     string
		Parameters int
		Tensors    []tensorRow
	}
	if err := json.Unmarshal([]byte(r.stdout), &inspected); err != nil {
		t.Fatal(err)
	}
	elements := 0
	for _, row := range inspected.Tensors {
		n := 1
		for _, axis := range row.Shape {
			n *= axis
		}
		elements += n
	}
	if inspected.Digest != finalDigest(t, l.path("runs", "tiny")) || inspected.Parameters != elements || elements == 0 {
		t.Errorf("digest %s, %d parameters, %d elements", inspected.Digest, inspected.Parameters, elements)
	}
	same := invoke(t, "model", "compare", policy, policy)
	same.expect(t, exitDone)
	if !strings.Contains(same.stdout, "the same weights") {
		t.Errorf("a model differs from itself: %s", same.stdout)
	}
	other := invoke(t, "model", "compare", l.path("model"), policy)
	other.expect(t, exitFailed, "tensors differ")
	if !strings.Contains(other.stdout, "model.norm.weight") {
		t.Errorf("training moved everything but the comparison does not say so:\n%s", other.stdout)
	}
}

func TestDataCheckCountsWhatIsThere(t *testing.T) {
	l := lab(t)
	r := invoke(t, "data", "check", "--json", l.path("data", "train.json"))
	r.expect(t, exitDone)
	var report fileReport
	if err := json.Unmarshal([]byte(r.stdout), &report); err != nil {
		t.Fatal(err)
	}
	if report.Records != 16 || report.Kinds["truefalse"] != 16 || len(report.Bad) != 0 || report.Images != 16 {
		t.Errorf("%+v", report)
	}
}

func TestRewardCheck(t *testing.T) {
	l := lab(t)
	var records []struct {
		Conversations []struct{ From, Value string }
	}
	if err := json.Unmarshal(readFile(t, l.path("data", "train.json")), &records); err != nil {
		t.Fatal(err)
	}
	ids := invoke(t, "reward", "check", "--data", l.path("data", "train.json"), "--predictions", writeFile(t, filepath.Join(t.TempDir(), "none"), nil))
	ids.expect(t, exitDone)
	if !strings.Contains(ids.stdout, "16 records have no prediction") {
		t.Fatalf("unanswered records are not counted:\n%s", ids.stdout)
	}
	predictions := ""
	for i, id := range questionIDs(t, l) {
		gold := records[i].Conversations[1].Value
		texts := []string{
			"<think>I looked.</think><answer>" + gold + "</answer>", // right
			"<answer>" + gold + "</answer>",                         // right, without format
			"<think>I looked.</think><answer>A or B</answer>",       // hedged
			"<think>I looked.</think>",                              // no answer
		}
		line, err := json.Marshal(map[string]string{"id": id, "text": texts[i%len(texts)]})
		if err != nil {
			t.Fatal(err)
		}
		predictions += string(line) + "\n"
	}
	file := writeFile(t, filepath.Join(t.TempDir(), "predictions.jsonl"), []byte(predictions))
	r := invoke(t, "reward", "check", "--data", l.path("data", "train.json"), "--predictions", file)
	r.expect(t, exitDone)
	for _, words := range []string{"16 scored, 8 right strictly", "no_answer"} {
		if !strings.Contains(r.stdout, words) {
			t.Errorf("the report does not say %q:\n%s", words, r.stdout)
		}
	}
	broken := writeFile(t, filepath.Join(t.TempDir(), "broken.jsonl"), []byte(predictions+"{\n"))
	invoke(t, "reward", "check", "--data", l.path("data", "train.json"), "--predictions", broken).
		expect(t, exitFailed, fmt.Sprintf("%s:%d", broken, 17))
}

// questionIDs are the names that the shared questions have, in order.
func questionIDs(t *testing.T, l *laboratory) []string {
	t.Helper()
	store := openStore(t)
	questions, err := readQuestions(t.Context(), store, setOptions(l.path("data", "train.json"), promptData()), 0)
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]string, len(questions))
	for i, q := range questions {
		ids[i] = q.ID
	}
	return ids
}

func TestDoctor(t *testing.T) {
	l := lab(t)
	recipe, runs := writeRecipe(t, l.recipe)
	r := invoke(t, "doctor", "--config", recipe)
	r.expect(t, exitDone)
	if strings.Count(r.stdout, "ok  ") != 9 || strings.Contains(r.stdout, "FAIL") {
		t.Errorf("model, three stages, held-out data, fleet, trainer, memory and disk should be well:\n%s", r.stdout)
	}
	requireAbsent(t, runs)
	gone := filepath.Join(t.TempDir(), "gone")
	bad := invoke(t, "doctor", "--config", recipe, "--set", "model.path="+gone)
	bad.expect(t, exitFailed, "model will not do")
	if !strings.Contains(bad.stdout, gone) {
		t.Errorf("the doctor does not say what is missing:\n%s", bad.stdout)
	}
}
