//go:build cgo && seccomp

// Takes the place of those functions of libseccomp that are expensive: the
// linker (ld(1), --wrap) sends calls of NAME to __wrap_NAME, and __real_NAME is
// libseccomp's own.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <seccomp.h>

#include "adopt.h"

#ifndef __GLIBC__
#include <stdarg.h>
#include <stdio.h>

// A libseccomp that was compiled for glibc calls it when it prints a filter.
__attribute__((weak)) int __fprintf_chk(FILE *to, int level, const char *format, ...)
{
	va_list args;
	int n;

	(void)level;
	va_start(args, format);
	n = vfprintf(to, format, args);
	va_end(args);
	return n;
}
#endif

#define MAGIC "vzrun-seccomp-1\n"
#define MAX_SIZE (4096 * 8) // BPF_MAXINSNS

struct header {
	char magic[16];
	uint64_t size; // of the program that follows, in bytes; 0 = to be filled in
};

static int ticket = -1;   // to be filled in
static uint8_t *program; // NULL = compile
static size_t program_size;

int __real_seccomp_rule_add_array(scmp_filter_ctx, uint32_t, int, unsigned int, const struct scmp_arg_cmp *);
int __real_seccomp_rule_add_exact_array(scmp_filter_ctx, uint32_t, int, unsigned int, const struct scmp_arg_cmp *);
int __real_seccomp_export_bpf(const scmp_filter_ctx, int);

void vzrun_seccomp_adopt(int fd)
{
	struct header head;

	// Only a memfd has seals.
	if (fcntl(fd, F_GET_SEALS) < 0 || pread(fd, &head, sizeof(head), 0) != sizeof(head) ||
	    memcmp(head.magic, MAGIC, sizeof(head.magic)) != 0 || head.size > MAX_SIZE)
		return;
	// It stays open, so that no other file gets its number: libcontainer takes
	// the numbers up to it for files that the program inherits.
	if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return;
	if (head.size == 0) {
		ticket = fd;
		return;
	}
	uint8_t *read = malloc(head.size);
	if (read == NULL)
		return;
	if (pread(fd, read, head.size, sizeof(head)) != (ssize_t)head.size) {
		free(read);
		return;
	}
	program = read;
	program_size = head.size;
}

int __wrap_seccomp_rule_add_array(scmp_filter_ctx ctx, uint32_t action, int nr, unsigned int count, const struct scmp_arg_cmp *args)
{
	if (program != NULL)
		return 0;
	return __real_seccomp_rule_add_array(ctx, action, nr, count, args);
}

int __wrap_seccomp_rule_add_exact_array(scmp_filter_ctx ctx, uint32_t action, int nr, unsigned int count, const struct scmp_arg_cmp *args)
{
	if (program != NULL)
		return 0;
	return __real_seccomp_rule_add_exact_array(ctx, action, nr, count, args);
}

static int write_all(int fd, const uint8_t *data, size_t size)
{
	while (size > 0) {
		ssize_t n = write(fd, data, size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		data += n;
		size -= (size_t)n;
	}
	return 0;
}

// fill notes what libseccomp has written into the ticket, and passes it on.
static int fill(int fd)
{
	struct header head = { .magic = MAGIC };
	struct stat st;
	uint8_t *data;
	int rc;

	if (fstat(ticket, &st) < 0)
		return -errno;
	if (st.st_size <= (off_t)sizeof(head) || st.st_size > (off_t)(sizeof(head) + MAX_SIZE))
		return -EINVAL;
	head.size = (uint64_t)st.st_size - sizeof(head);
	data = malloc(head.size);
	if (data == NULL)
		return -ENOMEM;
	if (pread(ticket, data, head.size, sizeof(head)) != (ssize_t)head.size)
		rc = -EIO;
	else
		rc = write_all(fd, data, head.size);
	free(data);
	if (rc == 0 && pwrite(ticket, &head, sizeof(head), 0) != sizeof(head))
		rc = -EIO;
	return rc;
}

int __wrap_seccomp_export_bpf(const scmp_filter_ctx ctx, int fd)
{
	int rc;

	if (program != NULL)
		return write_all(fd, program, program_size);
	if (ticket < 0 || lseek(ticket, sizeof(struct header), SEEK_SET) < 0)
		return __real_seccomp_export_bpf(ctx, fd);
	rc = __real_seccomp_export_bpf(ctx, ticket);
	if (rc != 0)
		return rc;
	return fill(fd);
}
