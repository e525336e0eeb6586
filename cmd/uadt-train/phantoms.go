package main

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/uadt-train/uadt-train/internal/phantom"
)

// phantomScheme begins the name of a set that is made when it is first needed,
// such as phantom:train:2048 or, with a seed, phantom:train:2048:7.
const phantomScheme = "phantom:"

// isPhantom says whether a data key names a set to be made.
func isPhantom(path string) bool { return strings.HasPrefix(path, phantomScheme) }

// recordsFile returns the file that a data key names, making it below the run
// directory dir if it is a set of phantoms. A run keeps the set that it began
// with, whatever a later program would draw.
func recordsFile(ctx context.Context, path, dir string) (string, error) {
	if !isPhantom(path) {
		return path, nil
	}
	split, options, err := parsePhantom(path)
	if err != nil {
		return "", err
	}
	home := filepath.Join(dir, "phantoms", strings.ReplaceAll(strings.TrimPrefix(path, phantomScheme), ":", "-"))
	file := filepath.Join(home, split+".json")
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	if _, err := phantom.Write(ctx, home, options); err != nil {
		return "", err
	}
	return file, nil
}

// parsePhantom reads phantom:SPLIT:COUNT[:SEED].
func parsePhantom(path string) (split string, o phantom.Options, err error) {
	parts := strings.Split(strings.TrimPrefix(path, phantomScheme), ":")
	if len(parts) != 2 && len(parts) != 3 {
		return "", o, usagef("%s: want phantom:SPLIT:COUNT or phantom:SPLIT:COUNT:SEED", path)
	}
	count, err := strconv.Atoi(parts[1])
	if err != nil || count < 1 {
		return "", o, usagef("%s: %q is not a number of records", path, parts[1])
	}
	if len(parts) == 3 {
		if o.Seed, err = strconv.ParseInt(parts[2], 10, 64); err != nil {
			return "", o, usagef("%s: %q is not a seed", path, parts[2])
		}
	}
	counts := map[string]*int{
		phantom.SplitCaptions: &o.Captions, phantom.SplitSFT: &o.SFT, phantom.SplitTrain: &o.Train,
		phantom.SplitInDomain: &o.InDomain, phantom.SplitOutOfDomain: &o.OutOfDomain,
	}
	field, known := counts[parts[0]]
	if !known {
		return "", o, usagef("%s: %q is none of captions, sft, train, in_domain, out_of_domain", path, parts[0])
	}
	*field = count
	return parts[0], o, nil
}
