package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/uadt-train/uadt-train/configs"
)

// configCommand shows, explains and compares recipes.
func (m *Main) configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "show, explain and compare recipes"}
	cmd.AddCommand(m.configShow(), m.configExplain(), m.configDiff())
	return cmd
}

func (m *Main) configShow() *cobra.Command {
	var c configFlags
	cmd := &cobra.Command{
		Use: "show --config FILE", Short: "print the resolved recipe, with where each value comes from", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			loaded, err := c.load(m)
			if err != nil {
				return err
			}
			text, err := loaded.YAML()
			if err != nil {
				return err
			}
			_, err = m.Stdout.Write(text)
			return err
		},
	}
	c.bind(cmd)
	return cmd
}

func (m *Main) configExplain() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "explain [KEY]", Short: "say what a key means; without one, list all keys", Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				text, err := configs.Explain(args[0])
				if err != nil {
					return err
				}
				if asJSON {
					return json.NewEncoder(m.Stdout).Encode(keysNamed(args[0]))
				}
				_, err = fmt.Fprint(m.Stdout, text)
				return err
			}
			if asJSON {
				return json.NewEncoder(m.Stdout).Encode(configs.Keys())
			}
			for _, k := range configs.Keys() {
				if _, err := fmt.Fprintf(m.Stdout, "%-28s %-9s %s\n", k.Name, k.Class, k.Help); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a list of keys as JSON")
	return cmd
}

// keysNamed lists the key called name, where stages.NAME.key is that of any stage.
func keysNamed(name string) []configs.Key {
	if parts := strings.SplitN(name, ".", 3); len(parts) == 3 {
		name = "stages.*." + parts[2]
	}
	return slices.DeleteFunc(configs.Keys(), func(k configs.Key) bool { return k.Name != name })
}

func (m *Main) configDiff() *cobra.Command {
	return &cobra.Command{
		Use: "diff FILE FILE", Short: "list the keys in which two recipes differ", Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			var both [2]configs.Loaded
			for i, file := range args {
				loaded, err := configs.Load(configs.Request{File: file, Env: m.Env})
				if err != nil {
					return err
				}
				both[i] = loaded
			}
			for _, d := range configs.Diff(both[0].Config, both[1].Config) {
				if _, err := fmt.Fprintf(m.Stdout, "%-28s %-9s %s -> %s\n", d.Key, d.Class, d.A, d.B); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
