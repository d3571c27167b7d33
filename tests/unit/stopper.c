/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preloaded into a process: it stops itself after its call number STOP_AT, of all those by which it changes the
 * files of a state database. Nobody else has to watch it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void count(const char *path)
{
	static int calls;
	const char *at = getenv("STOP_AT");

	if (at && strstr(path, "/datapath.db") && ++calls == atoi(at))
		raise(SIGSTOP);
}

static void count_fd(int fd)
{
	char link[32], path[4096];
	ssize_t length;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof(path) - 1);
	path[length < 0 ? 0 : length] = 0;
	count(path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fdatasync(int fd)
{
	int done = NEXT(fdatasync)(fd);

	count_fd(fd);
	return done;
}

int ftruncate64(int fd, off64_t length)
{
	int done = NEXT(ftruncate64)(fd, length);

	count_fd(fd);
	return done;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
	ssize_t done = NEXT(pwrite64)(fd, data, size, offset);

	count_fd(fd);
	return done;
}

int unlink(const char *path)
{
	int done = NEXT(unlink)(path);

	count(path);
	return done;
}
