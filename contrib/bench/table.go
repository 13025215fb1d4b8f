package main

import (
	"fmt"
	"slices"
	"strings"
)

func printHead(runtimes []*runtime) {
	head, line := "|", "|---|---|"
	for i, r := range runtimes {
		head += " " + r.name + " |"
		line += "---|"
		if i > 0 {
			line += "---|"
		}
	}
	ratios := ""
	for _, r := range runtimes[1:] {
		ratios += fmt.Sprintf(" %s / %s |", runtimes[0].name, r.name)
	}
	fmt.Printf("| | unit %s%s\n%s\n", head, ratios, line)
}

// printRow prints medians, and the medians of the rounds' ratios to the first
// runtime.
func printRow(s scenario, results [][]float64) {
	unit := map[string]string{"wall": "ms wall", "cpu": "ms CPU", "memory": "MiB"}[s.metric]
	cells := []string{s.name, unit}
	for _, values := range results {
		cells = append(cells, fmt.Sprintf("%.1f", median(values)))
	}
	for _, values := range results[1:] {
		ratios := make([]float64, len(values))
		for i := range values {
			ratios[i] = results[0][i] / values[i]
		}
		cells = append(cells, fmt.Sprintf("%.2f", median(ratios)))
	}
	fmt.Printf("| %s |\n", strings.Join(cells, " | "))
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}
