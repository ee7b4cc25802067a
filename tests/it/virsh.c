/* A virsh that misbehaves where it is told to, and is the real one otherwise. Beside it: `rules`, a line each
 * of WORD TAB ACTION TAB ARGUMENT, the first whose WORD is an argument counts; `calls`, what it was asked.
 *   say TEXT    print TEXT, end with 0          fail TEXT   print TEXT as an error, end with 1
 *   hang        never end                       lost        do it, then end with 1
 *   until FILE  do it once FILE exists          off FILE    as `say` with the content of FILE
 *   stop PID    the machine is this process: it stands still
 *   cont PID    it goes on, once there is no file `stay` beside us */
#include <libgen.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *real_one = "/usr/bin/virsh";

int main(int argc, char **argv) {
    char exe[4096] = {0}, path[4200], line[8192], word[256], action[64], text[8000];
    if (readlink("/proc/self/exe", exe, sizeof exe - 1) < 0) return 99;
    const char *dir = dirname(exe);
    snprintf(path, sizeof path, "%s/calls", dir);
    FILE *calls = fopen(path, "a");
    size_t n = 0;
    for (int i = 1; i < argc; i++) n += (size_t)snprintf(line + n, sizeof line - n, "%s%c", argv[i], i + 1 < argc ? ' ' : '\n');
    if (calls) { fwrite(line, 1, n, calls); fclose(calls); }
    snprintf(path, sizeof path, "%s/rules", dir);
    FILE *rules = fopen(path, "r");
    while (rules && fgets(line, sizeof line, rules)) {
        *text = 0;
        if (sscanf(line, "%255[^\t]\t%63[^\t\n]\t%7999[^\n]", word, action, text) < 2) continue;
        int hit = 0;
        for (int i = 1; i < argc; i++) hit |= !strcmp(argv[i], word);
        if (!hit) continue;
        if (!strcmp(action, "say")) { puts(text); return 0; }
        if (!strcmp(action, "fail")) { fprintf(stderr, "error: %s\n", text); return 1; }
        if (!strcmp(action, "hang")) for (;;) pause();
        if (!strcmp(action, "stop")) return kill(atoi(text), SIGSTOP) != 0;
        if (!strcmp(action, "cont")) {
            snprintf(path, sizeof path, "%s/stay", dir);
            while (!access(path, F_OK)) usleep(5000);
        }
        if (!strcmp(action, "cont")) return kill(atoi(text), SIGCONT) != 0;
        if (!strcmp(action, "until")) while (access(text, F_OK)) usleep(5000);
        if (!strcmp(action, "off")) {
            FILE *f = fopen(text, "r");
            int c;
            while (f && (c = getc(f)) != EOF) putchar(c);
            return 0;
        }
        if (!strcmp(action, "lost")) {
            int status;
            if (!fork()) execv(real_one, argv);
            wait(&status);
            fputs("error: connection reset\n", stderr);
            return 1;
        }
        break;
    }
    execv(real_one, argv);
    return 98;
}
