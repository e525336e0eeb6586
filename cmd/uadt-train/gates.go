package main

import (
	"fmt"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/uadt-train/uadt-train/configs"
	"github.com/uadt-train/uadt-train/experiments"
	"github.com/uadt-train/uadt-train/internal/phantom"
	"github.com/uadt-train/uadt-train/trainer"
)

// gates measures, on the groups of the first RL step, whether the phantom task
// needed depth under the policy that RL started from. ok is false for a run
// that did not train on phantoms.
func gates(dir string) (g phantom.Gates, ok bool, err error) {
	loaded, err := configs.Load(configs.Request{File: filepath.Join(dir, "config.yaml")})
	if err != nil {
		return g, false, err
	}
	source := ""
	for _, s := range loaded.Stages {
		if s.Kind == trainer.RL && isPhantom(s.Data) {
			source = s.Data
			break
		}
	}
	ledgers, err := filepath.Glob(filepath.Join(dir, "ledger", "step-*.parquet"))
	if err != nil || source == "" || len(ledgers) == 0 {
		return g, false, err
	}
	split, options, err := parsePhantom(source)
	if err != nil {
		return g, false, err
	}
	sort.Strings(ledgers)
	rows, err := experiments.ReadLedger(ledgers[0])
	if err != nil {
		return g, false, err
	}
	groups := map[string]*phantom.SampledGroup{}
	for _, row := range rows {
		id, _ := row["question"].(string)
		group := groups[id]
		if group == nil {
			hard, err := isHard(options, split, id)
			if err != nil {
				return g, false, err
			}
			group = &phantom.SampledGroup{Hard: hard}
			groups[id] = group
		}
		group.Traces = append(group.Traces, sampledOf(row))
	}
	return phantom.Measure(sortedGroups(groups)), true, nil
}

// sortedGroups lists groups in the order of their questions, so that sums have
// the same bits every time.
func sortedGroups(groups map[string]*phantom.SampledGroup) []phantom.SampledGroup {
	ids := make([]string, 0, len(groups))
	for id := range groups {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	out := make([]phantom.SampledGroup, len(ids))
	for i, id := range ids {
		out[i] = *groups[id]
	}
	return out
}

// isHard asks the generator about the question with the given id, such as
// train-000012.
func isHard(o phantom.Options, split, id string) (bool, error) {
	number := strings.TrimPrefix(id, split+"-")
	index, err := strconv.Atoi(number)
	if err != nil {
		return false, fmt.Errorf("ledger: question %q is not one of split %s", id, split)
	}
	item, err := o.Question(split, index)
	if err != nil {
		return false, err
	}
	return item.Hard, nil
}

func sampledOf(row map[string]any) phantom.Sampled {
	var s phantom.Sampled
	if n, ok := row["length"].(int64); ok {
		s.Tokens = int(n)
	}
	s.Entropy, _ = row["entropy"].(float64)
	s.Reward, _ = row["reward"].(float64)
	s.Correct, _ = row["correct"].(bool)
	return s
}
