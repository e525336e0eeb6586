package main

import "github.com/spf13/cobra"

func (m *Main) evalCommand() *cobra.Command { return &cobra.Command{Use: "eval"} }
