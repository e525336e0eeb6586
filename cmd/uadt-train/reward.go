package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/reward"
)

// rewardCommand scores answers offline.
func (m *Main) rewardCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "reward", Short: "score answers offline"}
	cmd.AddCommand(m.rewardCheck())
	return cmd
}

func (m *Main) rewardCheck() *cobra.Command {
	var data, predictions string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "check --data FILE --predictions FILE", Short: "score predictions and list why each is right or wrong", Args: cobra.NoArgs,
		Long: `check scores predictions (JSON lines with id and text, as eval writes them)
against the records of a file, and lists the reason code of every answer.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if data == "" || predictions == "" {
				return usagef("reward check: needs --data and --predictions")
			}
			store, remove, err := scratchStore()
			if err != nil {
				return err
			}
			defer remove() //nolint:errcheck // a temporary folder
			options := setOptions(data, configs.Defaults().Data)
			options.NoIndexFile = true
			questions, err := readQuestions(cmd.Context(), store, options, 0)
			if err != nil {
				return err
			}
			answers, err := readPredictions(predictions)
			if err != nil {
				return err
			}
			scorer, err := reward.New(reward.DefaultOptions())
			if err != nil {
				return err
			}
			report, err := reward.Check(cmd.Context(), scorer, questions, answers)
			if err != nil {
				return err
			}
			return m.printCheck(report, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVar(&data, "data", "", "file of records")
	f.StringVar(&predictions, "predictions", "", "JSON lines of predictions")
	f.BoolVar(&asJSON, "json", false, "print the report as JSON")
	return cmd
}

func readPredictions(path string) ([]reward.Prediction, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("predictions: %w", err)
	}
	defer file.Close() //nolint:errcheck // read-only
	var out []reward.Prediction
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 16<<20)
	for n := 1; scanner.Scan(); n++ {
		var p reward.Prediction
		if err := json.Unmarshal(scanner.Bytes(), &p); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		out = append(out, p)
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("predictions %s: %w", path, err)
	}
	return out, nil
}

// printCheck prints the report of reward check.
func (m *Main) printCheck(r reward.CheckReport, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(m.Stdout).Encode(r)
	}
	out := &printer{w: m.Stdout}
	for _, row := range r.Rows {
		verdict := "wrong"
		if row.Score.Correct {
			verdict = "right"
		}
		out.printf("%-24s %-6s reward %.3f  gold %q, extracted %q", row.ID, verdict, row.Score.Total, row.Gold, row.Score.Answer.Extracted)
		for _, p := range row.Score.Parts {
			out.printf("  %s %.2f (%s)", p.Name, p.Value, p.Reason)
		}
		out.printf("\n")
	}
	out.printf("%d scored, %d right strictly, %d right leniently, %d missing, mean reward %.4f\n", r.Scored, r.Correct, r.Lenient, r.Missing, r.MeanTotal)
	for _, p := range r.Parts {
		out.printf("  %-10s mean %.4f over %d\n", p.Name, p.Mean, p.Scored)
	}
	if len(r.Unknown)+len(r.Unanswered) > 0 {
		out.printf("%d predictions match no record, %d records have no prediction\n", len(r.Unknown), len(r.Unanswered))
	}
	return out.err
}
