package main

import "github.com/spf13/cobra"

// commands lists every command below the root.
func (m *Main) commands(w *watch) []*cobra.Command {
	return []*cobra.Command{
		m.workerCommand(w), m.serveCommand(w), m.evalCommand(), m.inferCommand(), m.rewardCommand(),
		m.dataCommand(), m.modelCommand(w), m.configCommand(), m.doctorCommand(),
	}
}
