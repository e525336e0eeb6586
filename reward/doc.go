// Package reward scores a reasoning trace: is it in the format that was asked
// for, and is its answer right? It holds the [Scorer] seam, the named parts
// whose weighted sum is the reward, and the pure functions that find, normalise
// and compare answers to single choice, true/false, multiple choice and open
// questions.
//
// It reads no file but the synonym table compiled into it, opens no connection
// and keeps no state: the same question and trace give the same score. It does
// not turn rewards into advantages (package uadt), and a reward that needs the
// world, such as a language model as judge, plugs in from reward/judge.
//
// Every part lies in [0, 1] unless it says otherwise, and every decision has a
// reason [Code]. A part that could not be computed is missing, which is not 0.
package reward
