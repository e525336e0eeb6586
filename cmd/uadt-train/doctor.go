package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/internal/bus"
	"github.com/uadt-train/uadt-train/internal/checkpoint"
	"github.com/uadt-train/uadt-train/internal/dataset"
	"github.com/uadt-train/uadt-train/internal/tokenizer"
)

// finding is one line of the doctor.
type finding struct {
	Check string `json:"check"`
	OK    bool   `json:"ok"`
	Text  string `json:"text"`
	// unreachable tells a dependency that does not answer from bad input.
	unreachable bool
}

// doctorCommand checks everything that a run will need, before it runs.
func (m *Main) doctorCommand() *cobra.Command {
	var c configFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use: "doctor --config FILE", Short: "check model, data, fleet, bus, trainer, memory and disk before a run", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.file == "" {
				return usagef("doctor: needs --config")
			}
			loaded, err := c.load(m)
			if err != nil {
				return err
			}
			return m.report(examine(cmd.Context(), loaded.Config), asJSON)
		},
	}
	c.bind(cmd)
	c.bindRehearse(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON lines")
	return cmd
}

func (m *Main) report(findings []finding, asJSON bool) error {
	out := &printer{w: m.Stdout}
	encoder := json.NewEncoder(m.Stdout)
	var bad, away []string
	for _, f := range findings {
		if asJSON {
			if err := encoder.Encode(f); err != nil {
				return fmt.Errorf("doctor: %w", err)
			}
		} else {
			mark := "ok  "
			if !f.OK {
				mark = "FAIL"
			}
			out.printf("%s  %-12s %s\n", mark, f.Check, f.Text)
		}
		switch {
		case f.OK:
		case f.unreachable:
			away = append(away, f.Check)
		default:
			bad = append(bad, f.Check)
		}
	}
	switch {
	case out.err != nil:
		return out.err
	case len(bad) > 0:
		return fmt.Errorf("doctor: %s will not do", strings.Join(bad, ", "))
	case len(away) > 0:
		return &unreachableError{strings.Join(away, ", "), errors.New("see above")}
	}
	return nil
}

func examine(ctx context.Context, c configs.Config) []finding {
	findings := []finding{checkModel(c)}
	for _, s := range c.Stages {
		findings = append(findings, checkRecords(ctx, "data "+s.Name, s.Data, c))
	}
	if c.Eval.Data != "" {
		findings = append(findings, checkRecords(ctx, "data eval", c.Eval.Data, c))
	}
	for _, url := range c.Rollout.Servers {
		findings = append(findings, checkServer(ctx, url))
	}
	if c.Bus.URL != "" {
		findings = append(findings, checkBus(ctx, c))
	}
	return append(findings, checkDisk(c))
}

// check makes a finding of what went right or wrong.
func check(name, text string, err error) finding {
	if err != nil {
		return finding{Check: name, Text: err.Error()}
	}
	return finding{Check: name, OK: true, Text: text}
}

func checkModel(c configs.Config) finding {
	model, err := checkpoint.Open(c.Model.Path)
	if err != nil {
		return check("model", "", err)
	}
	defer model.Close() //nolint:errcheck // read-only
	var meta struct {
		ModelType string `json:"model_type"`
	}
	if err := json.Unmarshal(model.Config(), &meta); err != nil {
		return check("model", "", fmt.Errorf("%s: config.json: %w", c.Model.Path, err))
	}
	if meta.ModelType == nativeFamily {
		if _, err := tokenizer.Open(c.Model.Path); err != nil {
			return check("model", "", err)
		}
		if _, err := tokenizer.OpenTemplate(c.Model.Path); err != nil {
			return check("model", "", err)
		}
	}
	return check("model", fmt.Sprintf("%s: %s, %d tensors", c.Model.Path, meta.ModelType, len(model.Names())), nil)
}

func checkRecords(ctx context.Context, name, path string, c configs.Config) finding {
	if isPhantom(path) {
		_, _, err := parsePhantom(path)
		return check(name, path+": made when the run starts", err)
	}
	store, remove, err := scratchStore()
	if err != nil {
		return check(name, "", err)
	}
	defer remove() //nolint:errcheck // a temporary folder
	set, err := dataset.Open(ctx, store, setOptions(path, c.Data))
	if err != nil {
		return check(name, "", err)
	}
	text := fmt.Sprintf("%s: %d records, %d left out", path, set.Len(), len(set.Bad()))
	return check(name, text, set.Close())
}

func checkServer(ctx context.Context, url string) finding {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	f := finding{Check: "fleet", Text: url, unreachable: true}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+"/version", nil)
	if err != nil {
		return check("fleet", "", fmt.Errorf("%s: %w", url, err))
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		f.Text = err.Error()
		return f
	}
	defer response.Body.Close() //nolint:errcheck // only its head is read
	var version struct {
		Version string `json:"version"`
	}
	if err := json.NewDecoder(response.Body).Decode(&version); err != nil || response.StatusCode != http.StatusOK {
		f.Text = fmt.Sprintf("%s: status %d, no version in the answer", url, response.StatusCode)
		return f
	}
	return check("fleet", fmt.Sprintf("%s: version %s", url, version.Version), nil)
}

func checkBus(ctx context.Context, c configs.Config) finding {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	seed, err := readSeed(c.Bus.Credentials)
	if err != nil {
		return check("bus", "", err)
	}
	conn, err := bus.Dial(ctx, bus.DialOptions{URL: c.Bus.URL, Name: "doctor", Seed: seed})
	if err != nil {
		return finding{Check: "bus", Text: err.Error(), unreachable: true}
	}
	conn.Close()
	return check("bus", c.Bus.URL, nil)
}

// checkDisk compares what a run keeps with what the disk has.
func checkDisk(c configs.Config) finding {
	dir := c.RunsDir
	for {
		if _, err := os.Stat(dir); err == nil {
			break
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			break
		}
		dir = parent
	}
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		return check("disk", "", fmt.Errorf("%s: %w", dir, err))
	}
	free := int64(stat.Bavail) * stat.Bsize
	// Each checkpoint holds weights and two moments in float32.
	need := int64(c.Checkpoint.Keep+len(c.Stages)) * 3 * directoryBytes(c.Model.Path)
	text := fmt.Sprintf("%s: %s free, checkpoints need about %s", dir, bytesText(free), bytesText(need))
	if free < need {
		return check("disk", "", errors.New(text))
	}
	return check("disk", text, nil)
}
