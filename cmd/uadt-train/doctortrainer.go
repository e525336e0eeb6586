package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// probe is what the trainer's interpreter is asked with.
//
//go:embed trainerprobe.py
var probe string

// trainerModules are what the trainer's process imports, by the distribution
// that each is from; its own package has none where it is not installed.
var trainerModules = map[string]string{
	"torch": "torch", "transformers": "transformers", "safetensors": "safetensors", "nats-py": "nats",
	"nkeys": "nkeys", "numpy": "numpy", "pillow": "PIL", "": "uadt_trainer",
}

// trainerVersions are the oldest that work, as trainer/pytorch/pyproject.toml
// has them; before is the first that is not known to work.
var trainerVersions = map[string]struct{ least, before string }{
	"torch": {least: "2.11"}, "transformers": {least: "5.10", before: "6"},
}

// gpu is a device of the trainer.
type gpu struct {
	Name  string `json:"name"`
	Free  int64  `json:"free"`
	Total int64  `json:"total"`
}

// trainerFacts is what the interpreter answered.
type trainerFacts struct {
	Python   string            `json:"python"`
	Versions map[string]string `json:"versions"`
	Missing  map[string]string `json:"missing"`
	Devices  []gpu             `json:"devices"`
	Backends []string          `json:"backends"`
}

// checkTrainer looks at what trains.
func (d *doctor) checkTrainer(ctx context.Context) []finding {
	t := d.c.Trainer
	if d.model.kind != "" {
		if err := d.model.check(d.c); err != nil {
			return []finding{check("trainer", "", err)}
		}
	}
	switch {
	case t.Backend != backendPyTorch:
		return []finding{check("trainer", t.Backend+", in the run's process, on this machine's CPU", nil)}
	case t.Launch == "external":
		return []finding{d.checkExternal()}
	}
	facts, err := d.askInterpreter(ctx)
	if err != nil {
		return []finding{check("trainer", "", err)}
	}
	d.host = &facts
	return []finding{facts.judge(t.Python, t.Ranks)}
}

// checkExternal can only look at the address that ranks are to find: they show
// themselves when a run calls them.
func (d *doctor) checkExternal() finding {
	f := check("trainer", fmt.Sprintf("%d ranks from elsewhere, which show themselves when the run begins", d.c.Trainer.Ranks), nil)
	if d.c.Bus.URL != "" {
		f.Found += ", at " + d.c.Bus.URL
		return f
	}
	f.Found += ", at bus.listen " + strconv.Quote(d.c.Bus.Listen)
	if _, port, err := net.SplitHostPort(d.c.Bus.Listen); err != nil || port == "0" || port == "" {
		f.OK, f.Want = false, "bus.url, or a bus.listen with a port that they can be told"
	}
	return f
}

// askInterpreter runs the probe in the interpreter that would train.
func (d *doctor) askInterpreter(ctx context.Context) (trainerFacts, error) {
	var facts trainerFacts
	wanted := maps.Clone(trainerModules)
	if d.c.Trainer.LoRARank > 0 {
		wanted["peft"] = "peft"
	}
	if d.c.Trainer.Weights == "nccl" {
		wanted["vllm"] = "vllm" // whose half of a broadcast rank 0 calls
	}
	modules, err := json.Marshal(wanted)
	if err != nil {
		return facts, err
	}
	python := d.c.Trainer.Python
	cmd := exec.CommandContext(ctx, python, "-c", probe, string(modules))
	cmd.WaitDelay = time.Second
	cmd.Env = os.Environ()
	if folder := pytorchPackage(); folder != "" {
		cmd.Env = append(cmd.Env, "PYTHONPATH="+folder)
	}
	var diagnostics bytes.Buffer
	cmd.Stderr = &diagnostics
	out, err := cmd.Output()
	if cause := context.Cause(ctx); cause != nil {
		return facts, fmt.Errorf("trainer.python %s: no answer within %s", python, trainerPatience)
	}
	if err != nil {
		lines := strings.Split(strings.TrimSpace(diagnostics.String()), "\n")
		return facts, fmt.Errorf("trainer.python %s: %w %s", python, err, lines[len(lines)-1])
	}
	// Imports may have printed before it.
	if at := bytes.LastIndexByte(bytes.TrimSpace(out), '\n'); at >= 0 {
		out = out[at+1:]
	}
	if err := json.Unmarshal(out, &facts); err != nil {
		return facts, fmt.Errorf("trainer.python %s: %w in the answer %.100q", python, err, out)
	}
	return facts, nil
}

// judge compares what an interpreter has with what ranks need.
func (f trainerFacts) judge(python string, ranks int) finding {
	found := fmt.Sprintf("%s: Python %s, torch %s, transformers %s", python, f.Python, orElse(f.Versions["torch"], "none"), orElse(f.Versions["transformers"], "none"))
	var wanted []string
	for module, why := range f.Missing {
		wanted = append(wanted, fmt.Sprintf("%s (%s)", module, why))
	}
	slices.Sort(wanted)
	for name, v := range trainerVersions {
		have, ok := f.Versions[name]
		if ok && (older(have, v.least) || v.before != "" && !older(have, v.before)) {
			wanted = append(wanted, fmt.Sprintf("%s of at least %s%s", name, v.least, suffix(" and before ", v.before)))
		}
	}
	backend := "gloo"
	if len(f.Devices) > 0 {
		backend = "nccl"
		names := make([]string, len(f.Devices))
		for i, device := range f.Devices {
			names[i] = fmt.Sprintf("%s with %s", device.Name, bytesText(device.Total))
		}
		found += fmt.Sprintf(", %d GPUs (%s)", len(f.Devices), list(names))
		if len(f.Devices) < ranks {
			wanted = append(wanted, fmt.Sprintf("a GPU for each of %d ranks (trainer.ranks)", ranks))
		}
	} else {
		found += fmt.Sprintf(", no GPU: %d rank(s) train on the CPU in float32", ranks)
	}
	found += ", collectives by " + orElse(list(f.Backends), "none")
	if ranks > 1 && !slices.Contains(f.Backends, backend) {
		wanted = append(wanted, backend+" for more than one rank")
	}
	return finding{Check: "trainer", OK: len(wanted) == 0, Found: found, Want: list(wanted)}
}

func suffix(before, text string) string {
	if text == "" {
		return ""
	}
	return before + text
}

// older compares versions by their numbers; what follows them, as +cpu or rc1,
// does not count.
func older(have, want string) bool { return slices.Compare(numbers(have), numbers(want)) < 0 }

func numbers(version string) []int {
	version, _, _ = strings.Cut(version, "+")
	var out []int
	for _, part := range strings.Split(version, ".") {
		digits := part[:len(part)-len(strings.TrimLeft(part, "0123456789"))]
		n, err := strconv.Atoi(digits)
		if err != nil {
			break
		}
		out = append(out, n)
	}
	return out
}

// errNoMemInfo says that the kernel does not tell what memory is available.
var errNoMemInfo = errors.New("MemAvailable is not told here")
