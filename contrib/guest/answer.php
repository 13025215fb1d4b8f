<?php
// Enough work that the just-in-time compiler, where it is on, takes part.
$sum = 0;
for ($i = 0; $i < 20000; $i++) {
	$sum = ($sum * 31 + $i) % 65521;
}
echo "answer ", (int) $_GET["n"], " ", $sum, "\n";
