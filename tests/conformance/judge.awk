# Judges the checks of the conformance programs. Lines of input:
#   runtime <tab> program <tab> pass|fail|skip <tab> text
# Variables: programs, a list of names; list, the file of known deviations, with
# lines 'program <tab> text of the check <tab> reason'. If the reason begins with
# "here:" it depends on the machine, and the check may pass elsewhere. One that
# begins with "at times:" depends on the moment: it may pass with one runtime and
# fail with the other.

function complain(text) { complaints[++wrong] = text }

BEGIN {
	while ((getline line < list) > 0) {
		if (line ~ /^#/ || line == "") continue
		if (split(line, field, /\t+/) != 3) complain("a line of the list of deviations has not three fields: " line)
		known[field[1], field[2]] = field[3]
		if (field[3] ~ /^at times:/) unsteady[field[1]] = 1
	}
}

{
	count[$1, $2, $3]++
	if ($3 == "fail") failed[$1, $2, $4]++
	if ($3 == "pass") passed_by[$1, $2, $4]++
	if ($1 == "vzrun" && $3 == "fail" && !(($2, $4) in seen)) {
		seen[$2, $4] = 1
		order[$2] = order[$2] "\n" $4
	}
}

END {
	printf "%-34s %14s %14s\n%-34s %4s %4s %4s %4s %4s %4s\n", "", "vzrun", "runc", "program", "pass", "fail", "skip", "pass", "fail", "skip"
	n = split(programs, name, " ")
	for (i = 1; i <= n; i++) {
		p = name[i]
		selected[p] = 1
		printf "%-34s %4d %4d %4d %4d %4d %4d\n", p, count["vzrun", p, "pass"], count["vzrun", p, "fail"], count["vzrun", p, "skip"],
			count["runc", p, "pass"], count["runc", p, "fail"], count["runc", p, "skip"]
		passed += count["vzrun", p, "pass"]
		skipped += count["vzrun", p, "skip"]
		excused = 0
		m = split(substr(order[p], 2), text, "\n")
		for (j = 1; j <= m; j++) {
			times = failed["vzrun", p, text[j]]
			beside = failed["runc", p, text[j]] ? "runc fails too" : passed_by["runc", p, text[j]] ? "runc passes" : "runc does not get there"
			if ((p, text[j]) in known) {
				deviations = deviations sprintf("  %s: %s (%s)\n", p, text[j], beside)
				skipped += times
				if (passed_by["runc", p, text[j]]) excused += times
			} else {
				complain(p ": " text[j] " (" beside ")")
				bad += times
			}
		}
		if (count["vzrun", p, "pass"] + excused < count["runc", p, "pass"] && !(p in unsteady)) complain(p ": vzrun passes fewer checks than runc")
	}
	for (key in known) {
		split(key, field, SUBSEP)
		if (field[1] in selected) {
			if (known[key] !~ /^(here|at times):/ && !(("vzrun", field[1], field[2]) in failed)) complain(field[1] ": no deviation any more: " field[2])
		}
	}
	if (deviations != "") printf "known deviations:\n%s", deviations
	for (i = 1; i <= wrong; i++) print "WRONG: " complaints[i]
	printf "%d passed, %d failed, %d skipped\n", passed, bad, skipped
	exit wrong > 0
}
