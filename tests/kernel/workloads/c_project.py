"""Writes a C program of many modules that call each other, with a Makefile, and prints what the program will print.

usage: c_project.py DIRECTORY MODULES
"""
import os
import sys

directory, modules = sys.argv[1], int(sys.argv[2])
os.makedirs(directory)


def write(name, text):
    with open(os.path.join(directory, name), "w") as file:
        file.write(text)


value = 1
for number in range(modules):
    factor, term = number % 7 + 2, number * 31 % 101
    value = (value * factor + term) % 1000003
    padding = "".join(f"static const int unused_{number}_{at} = {at};\n" for at in range(40))
    write(f"module{number}.h", f"unsigned long step{number}(unsigned long value);\n")
    write(
        f"module{number}.c",
        f'#include "module{number}.h"\n#include <stdio.h>\n#include <stdlib.h>\n{padding}'
        f"unsigned long step{number}(unsigned long value)\n{{\n    return (value * {factor} + {term}) % 1000003;\n}}\n",
    )
calls = "".join(f"    value = step{number}(value);\n" for number in range(modules))
includes = "".join(f'#include "module{number}.h"\n' for number in range(modules))
write(
    "main.c",
    f'#include <stdio.h>\n{includes}int main(void)\n{{\n    unsigned long value = 1;\n{calls}    printf("%lu\\n", value);\n    return 0;\n}}\n',
)
objects = " ".join(["main.o"] + [f"module{number}.o" for number in range(modules)])
write("Makefile", f"program: {objects}\n\tcc -o $@ {objects}\n%.o: %.c\n\tcc -O1 -w -c -o $@ $<\n")
print(value)
