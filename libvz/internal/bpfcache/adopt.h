// See adopt.c.
void vzrun_seccomp_adopt(int fd);
