<?php
echo "compiler: ", opcache_get_status(false)["jit"]["on"] ? "on" : "off", "\n";
